"""What a league of 100 policies costs a run, against the group as the opponent: memory, start, and time per step.

Claims, with the numbers checked before the speed is printed:
1. for mean scores one vector per prompt is the whole league (arXiv 2410.02197's score is linear in the opponent's
   embedding), so memory does not grow with the number of policies;
2. a step's targets against the league cost next to nothing beside what the step costs already.

usage: python benchmarks/league.py [--policies 100] [--prompts 256] [--output benchmarks.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from timing import compare

from openrlhf_gpm.core import Groups, group_scores, preference_score
from openrlhf_gpm.objectives.against import beside
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.objective import Objective
from openrlhf_gpm.objectives.sppo import SPPO
from openrlhf_gpm.scoring.embeddings import Answers, Means, read, to_line

K, PLANES = 5, 4
STEP_SECONDS = 60.0
"""A short rollout step of a real run, to put milliseconds in proportion."""


def write_league(folder: Path, policies: int, prompts: int) -> list[Path]:
    """One file per policy, five answers to each prompt."""
    generator = torch.Generator().manual_seed(0)
    files = [folder / f"{policy}.jsonl" for policy in range(policies)]
    gate = torch.rand(prompts, PLANES, generator=generator).tolist()
    for file in files:
        v = torch.nn.functional.normalize(torch.randn(prompts, K, 2 * PLANES, generator=generator), dim=-1).tolist()
        lines = (to_line(f"prompt {i}", v[i], gate[i], "judge") for i in range(prompts))
        file.write_text("".join(line + "\n" for line in lines))
    return files


def load(files: list[Path], means_only: bool) -> tuple[Answers | Means, float]:
    """The league in memory, and the seconds that reading took."""
    start, answers = time.perf_counter(), Means() if means_only else Answers()
    for file in files:
        for part in read(file, "judge", "--gpm.league"):
            answers.add(part)
    return answers, time.perf_counter() - start


def targets(
    objective: Objective, answers: Answers | Means | None, v: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """What a step does between the reward model and the update: (G, K) targets."""
    groups = Groups(group_scores(v, gate))
    if answers is not None:
        found = answers.of([f"prompt {i}" for i in range(len(v))])
        assert found is not None
        against = preference_score(v.unsqueeze(2), found[0].unsqueeze(1), gate[:, None, None])
        groups = beside(groups, against, found[1], 0.5, isinstance(answers, Means))
    return objective.prepare(groups)["target"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=256, help="of the run, all of them in one rollout batch")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    v = torch.nn.functional.normalize(torch.randn(args.prompts, K, 2 * PLANES), dim=-1)
    gate = torch.rand(args.prompts, PLANES)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_league(Path(folder), args.policies, args.prompts)
        leagues = {means_only: load(files, means_only) for means_only in (True, False)}
        by_mean, by_all = (targets(GPO(), leagues[means_only][0], v, gate) for means_only in (True, False))
        torch.testing.assert_close(by_mean, by_all, atol=1e-5, rtol=1e-4)
        for objective, means_only in ((GPO(), True), (SPPO(), False)):
            answers, reading = leagues[means_only]
            ratio = compare(
                lambda o=objective, a=answers: targets(o, a, v, gate),
                lambda o=objective: targets(o, None, v, gate),
                pairs=7,
            )
            extra = ratio.slow_seconds - ratio.fast_seconds
            results.append(
                {
                    "objective": type(objective).__name__,
                    "bytes_per_prompt": answers.bytes / args.prompts,
                    "read_seconds": reading,
                    "league_seconds": ratio.slow_seconds,
                    "group_seconds": ratio.fast_seconds,
                    "step_ratio": 1 + extra / STEP_SECONDS,
                }
            )
            print(
                f"{type(objective).__name__}, {args.policies} policies, {args.prompts} prompts of {K} answers: "
                f"{answers.bytes / args.prompts:.0f} bytes per prompt, read in {reading:.1f} s; targets in "
                f"{1e3 * ratio.slow_seconds:.1f} ms against {1e3 * ratio.fast_seconds:.1f} ms: "
                f"{1 + extra / STEP_SECONDS:.4f} of a step of {STEP_SECONDS:.0f} s"
            )
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
