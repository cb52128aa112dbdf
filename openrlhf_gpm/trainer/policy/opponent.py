"""The opponent of a run's groups, on the driver: the group, a mixture, or other answers by their embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor

from openrlhf_gpm import objectives
from openrlhf_gpm.core import Groups, preference_score, quantiles
from openrlhf_gpm.files import replacing
from openrlhf_gpm.objectives import opponents
from openrlhf_gpm.objectives.against import beside, mixture, too_few, unbeaten_mixture
from openrlhf_gpm.scoring.embeddings import Answers, Embedded, Means, judge_of, key_of, read, to_line
from openrlhf_gpm.trainer.policy.rows import unpack_rows

logger = init_logger(__name__)

HISTORY = "history"
"""Folder in --ckpt.output_dir for the embeddings of each step's answers."""

MATCHES = 1000
"""Prompts, spread evenly, from whose answers the von Neumann mixture of a league is computed."""


class RunOpponent:
    """Puts groups before the opponent that the flags ask for."""

    def __init__(self, args: SimpleNamespace) -> None:
        self.args, self.rules = args, opponents.from_args(args)
        self.means_only = not objectives.from_args(args).reads_win_rates
        self.answers: Answers | Means | None = None  # read with the first groups, when the step of the run is known
        self.by_prompt = self.rules.kind in ("history", "league")
        self.judge = judge_of(args.reward.model_name_or_path) if self.by_prompt else ""

    def face(self, groups: Groups, prompts: Sequence[Any], rows: Tensor, step: int) -> tuple[Groups, dict[str, float]]:
        """The groups against the opponent, and what the log says of it; history then remembers these answers.

        prompts: of the G groups, before templating, read where `by_prompt`; rows: (G, K, 3k + FACTS), see `pack_rows`;
        step: from 1.
        """
        if self.rules.kind == "group":
            return groups, {}
        if self.rules.kind == "mixture":
            return self._mix(groups, step)
        keys = [key_of(prompt) for prompt in prompts]
        if self.answers is None:
            self.answers = self._past(step) if self.rules.kind == "history" else league(self.args, self.means_only)
        found = self.answers.of(keys)
        faced, known = groups, 0.0
        if found is not None:
            other, weights = found
            parts = unpack_rows(rows)
            gate = parts.gate_over_tau[:, :1].unsqueeze(1)
            against = preference_score(parts.embeddings.unsqueeze(2), other.unsqueeze(1), gate)
            faced = beside(groups, against, weights, self.rules.share, self.means_only)  # against: (G, K, M)
            known = (weights > 0).any(-1).float().mean().item()
        if self.rules.kind == "history":
            self._remember(prompts, keys, rows, step)
        return faced, {"opponent_known": known}

    def _mix(self, groups: Groups, step: int) -> tuple[Groups, dict[str, float]]:
        faced, size = mixture(groups, groups.drift[self.rules.policy], self.rules.share)
        back = int(too_few(size).sum())
        if back:
            logger.warning(
                f"step {step}: {back} of {len(size)} groups play against themselves, because less than 2 of their "
                f"answers would stand for the mixture: lower --gpm.opponent_share {self.rules.share}"
            )
        return faced, quantiles("opponent_size", size.flatten()) | {"opponent_fallback": back / len(size)}

    def _past(self, step: int) -> Answers | Means:
        """What earlier passes left, and this run before `step`."""
        answers = remembered(self.means_only)
        folders = [Path(folder) for folder in (self.rules.history or "").split(",") if folder]
        files = itertools.chain.from_iterable(sorted(folder.glob("step_*.jsonl")) for folder in folders)
        own = sorted(file for file in self._folder.glob("step_*.jsonl") if file.stem < _name(step))
        for file in itertools.chain(files, own):
            for part in read(file, self.judge, "--gpm.history"):
                answers.add(part)
        return answers

    def _remember(self, prompts: Sequence[Any], keys: Sequence[str], rows: Tensor, step: int) -> None:
        parts = unpack_rows(rows)
        v, gates = parts.embeddings, parts.gate_over_tau[:, 0]
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / f"{_name(step)}.jsonl") as (file,):
            for prompt, embeddings, gate in zip(prompts, v.tolist(), gates.tolist(), strict=True):
                file.write(to_line(prompt, embeddings, gate, self.judge) + "\n")
        assert self.answers is not None
        self.answers.add(Embedded(list(keys), v.flatten(0, 1), [v.shape[1]] * len(v), gates))

    @property
    def _folder(self) -> Path:
        return Path(self.args.ckpt.output_dir) / HISTORY


def _name(step: int) -> str:
    return f"step_{step:06d}"


def remembered(means_only: bool) -> Answers | Means:
    """Nothing yet."""
    return Means() if means_only else Answers()


def league(args: SimpleNamespace, means_only: bool) -> Answers | Means:
    """The answers of all policies of --gpm.league, each policy with its weight. Raises ValueError as `read` does."""
    rules = opponents.from_args(args)
    judge, files = judge_of(args.reward.model_name_or_path), [Path(file) for file in (rules.league or "").split(",")]
    weights = rules.weights()
    if weights is None:
        weights = von_neumann_weights(files, judge)
    answers = remembered(means_only)
    for file, weight in zip(files, weights, strict=True):
        for part in read(file, judge, "--gpm.league"):
            answers.add(part, weight)
    return answers


def von_neumann_weights(files: Sequence[Path], judge: str) -> list[float]:
    """The mixture of the league's policies that none of them beats, from up to `MATCHES` prompts; it is logged."""
    tables = [_by_prompt(file, judge) for file in files]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    if not common:
        raise ValueError("--gpm.league_weights von_neumann: the files of --gpm.league have no prompt in common")
    chosen = common[:: -(-len(common) // MATCHES)]
    answers = []
    for key in chosen:
        parts = [table[key][0] for table in tables]
        owner = torch.arange(len(files)).repeat_interleave(torch.tensor([len(part) for part in parts]))
        answers.append((torch.cat(parts), tables[0][key][1], owner))
    weights, rates = unbeaten_mixture(answers, len(files))
    logger.info(
        "--gpm.league_weights von_neumann, over %d prompts: %s; its worst win rate against one of them is %.3f",
        len(chosen),
        ", ".join(f"{file.name} {weight:.3f}" for file, weight in zip(files, weights.tolist(), strict=True)),
        float((weights @ rates).min()),
    )
    return list(weights.tolist())


def _by_prompt(file: Path, judge: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings (K, 2k) and gate / tau (k,) by the prompt's key."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for part in read(file, judge, "--gpm.league"):
        answers = zip(part.embeddings.split(part.sizes), part.gates_over_tau, strict=True)
        found |= dict(zip(part.keys, answers, strict=True))
    return found


def check_answers(args: SimpleNamespace, prompts: Sequence[Any]) -> None:
    """Raise ValueError where a file of the opponent cannot be read, is another judge's, or lacks a prompt."""
    rules = opponents.from_args(args)
    judge = judge_of(args.reward.model_name_or_path) if rules.kind in ("history", "league") else ""
    for name in (rules.league or "").split(",") if rules.kind == "league" else ():
        known = {key for part in read(Path(name), judge, "--gpm.league") for key in part.keys}
        missing = [prompt for prompt in prompts if key_of(prompt) not in known]
        if missing:
            raise ValueError(
                f"--gpm.league {name} has no answers to {len(missing)} of {len(prompts)} prompts of "
                f"--data.prompt_dataset (the first: {missing[0]!r:.80}): let that policy answer them, and embed them"
            )
    for name in (rules.history or "").split(",") if rules.kind == "history" and rules.history else ():
        files = sorted(Path(name).glob("step_*.jsonl"))
        if not files:
            raise ValueError(f"--gpm.history {name} holds no step_*.jsonl: name the history folder of an earlier pass")
        for file in files:
            for _ in read(file, judge, "--gpm.history"):
                pass
