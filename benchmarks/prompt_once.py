"""Scoring a group: the prompt once, against OpenRLHF's reward actor, the other layout, and an encoder of pairs.

The other layout is full encoding where a group is read as a forest, and a forest where it falls back: the last line
says how near the choice comes to the better of the two.

SmolLM2-135M in fp32, the same ids and weights in every arm; numbers are checked before a speed is printed.

With --groups N both sides get N groups a call: ours batches them by tokens, an actor takes one at a time.

usage: python benchmarks/prompt_once.py [--group_sizes 8] [--groups 1] [--pairs 7] [--arms ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from smollm2 import OUTPUTS, checkpoints, load_bt, load_gpm_fp32, random_group
from timing import compare

from openrlhf_gpm.samples.batch import collate
from openrlhf_gpm.samples.forest import collate_forest, forest_pays, shared_length
from openrlhf_gpm.samples.formatting import Encoded
from openrlhf_gpm.scoring.torch_backend import TorchBackend

SHAPES = ((256, 64), (512, 64))  # prompt, response: where sharing pays
SHORT = ((8, 256), (16, 128), (64, 128), (64, 64))  # where little is shared, in the first nothing; K = 2 and 8
PAIRWISE_UP_TO = 8
PAIRWISE_PAIRS = 3
"""ABBA pairs of the longest arm, whose ratio is far from 1."""

OTHER_LAYOUT = ("full encoding", "forest")


class RewardActorPath:
    """What OpenRLHF's reward actor does with a group: one padded batch, one number per response."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, group: list[Encoded]) -> torch.Tensor:
        batch = collate(group, 0)
        return self.model(batch["input_ids"], batch["attention_mask"], ring_attn_group=None, pad_sequence=True)


@torch.no_grad()
def encode_pairs(model: Any, group: list[Encoded], prompt: int) -> torch.Tensor:
    """(K, K) scores by reading prompt + both responses, in both orders: K (K - 1) samples, 8 at a time."""
    k = len(group)
    i, j = (~torch.eye(k, dtype=torch.bool)).nonzero(as_tuple=True)
    samples = [
        Encoded(group[a].input_ids + group[b].input_ids[prompt:], prompt)
        for a, b in zip(i.tolist(), j.tolist(), strict=True)
    ]
    reward = torch.cat([model(**collate(samples[n : n + 8], 0))[0][:, 0] for n in range(0, len(samples), 8)])
    table = torch.zeros(k, k)
    table[i, j] = reward
    table = table - table.mT
    assert torch.equal(table, -table.mT)
    return table


def report(name: str, ratio: Any, tokens: float) -> dict[str, Any]:
    print(
        f"{name:34} {ratio.median:6.2f}x  [{ratio.low:.2f}, {ratio.high:.2f}]  {ratio.slow_seconds:7.3f} s -> "
        f"{ratio.fast_seconds:.3f} s   tokens {tokens:5.2f}x, {ratio.median / tokens:4.0%} of that bound",
        flush=True,
    )
    return {"name": name, "tokens_ratio": tokens, "of_bound": ratio.median / tokens, **vars(ratio)}


def measure(
    prompt: int, response: int, k: int, models: dict[str, Any], count: int, pairs: int, only: list[str]
) -> list[dict[str, Any]]:
    groups = [random_group(prompt, response, k, seed) for seed in range(count)]
    group = groups[0]
    shared, full = (TorchBackend(models["gpm"], share_prompt=share) for share in ("auto", "off"))
    actor = RewardActorPath(models["bt"])

    def rewards() -> torch.Tensor:
        return torch.cat([actor(group) for group in groups])

    v, v_full = shared.embed_groups(groups)[0], full.embed_groups(groups)[0]
    scale = v_full.abs().max()
    assert (v - v_full).abs().max() <= 1e-4 * scale, "sharing the prompt changed the embeddings"
    assert (rewards() - v_full[:, 0]).abs().max() <= 1e-4 * scale, "the reward is not the GPM's first number"

    length = prompt + response
    shares = forest_pays([group], by_length=True)
    used = prompt + k * response if shares else k * length
    assert shared_length(group) == prompt
    name = (f"{count} x " if count > 1 else "") + f"{prompt}/{response} K={k}" + ("" if shares else " (falls back)")

    def once() -> None:
        shared.embed_groups(groups)

    @torch.no_grad()
    def as_forest() -> None:
        models["gpm"](**collate_forest(groups))

    def pairwise() -> list[torch.Tensor]:
        return [encode_pairs(models["pairwise"], group, prompt) for group in groups]

    arms: dict[str, tuple[Callable[[], object], int, int]] = {"OpenRLHF's actor": (rewards, k * length, pairs)}
    if shares:
        arms["full encoding"] = (lambda: full.embed_groups(groups), k * length, pairs)
    else:
        arms["forest"] = (as_forest, prompt + k * response, pairs)
    if shares and k <= PAIRWISE_UP_TO:
        arms["all pairs"] = (pairwise, k * (k - 1) * (prompt + 2 * response), min(pairs, PAIRWISE_PAIRS))
    rows = [
        report(f"{name}: {arm}", compare(run, once, turns), tokens / used)
        for arm, (run, tokens, turns) in arms.items()
        if not only or arm in only
    ]
    return [{"prompt": prompt, "response": response, "k": k, "groups": count, **row} for row in rows]


def lowest_choice(rows: list[dict[str, Any]]) -> str:
    """The row in which the layout that was chosen is slowest against the other."""
    others = [row for row in rows if row["name"].endswith(OTHER_LAYOUT)]
    worst = min(others, key=lambda row: row["median"], default=None)
    if worst is None:
        return "the choice of layout was not measured"
    speed = f"{min(1, worst['median']):.2f} of the better layout [{worst['low']:.2f}, {worst['high']:.2f}]"
    return f"the choice is never below {speed}, {worst['name']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group_sizes", type=int, nargs="+", default=[8], help="of long prompts")
    parser.add_argument("--groups", type=int, default=1, help="groups a call")
    parser.add_argument("--pairs", type=int, default=7, help="ABBA pairs a row")
    parser.add_argument("--arms", nargs="*", default=[], help='only these, such as "OpenRLHF\'s actor" (default: all)')
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    paths = checkpoints()
    models = {name: load_gpm_fp32(paths[name]) for name in ("gpm", "pairwise")} | {"bt": load_bt(paths["bt"])}
    cases = [(p, r, k) for p, r in SHAPES for k in args.group_sizes]
    cases += [(p, r, k) for p, r in SHORT for k in (2, 8)]
    rows = [row for case in cases for row in measure(*case, models, args.groups, args.pairs, args.arms)]
    print(lowest_choice(rows))
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / "prompt_once.json").write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=2) + "\n")
    print(f"written to {OUTPUTS / 'prompt_once.json'}")


if __name__ == "__main__":
    main()
