"""Selects prompts from preference files and splits them by prompt: a data set that a CPU can train on in minutes.

usage: select_prompts.py DATA.parquet [MORE.parquet ...] --prompts 96 --held_out 32 --output DIR [--max_chars N]

Writes DIR/DATA/train.jsonl and DIR/DATA/held_out.jsonl for each file, one group per line: each response once, with all
its comparisons. All files get the same prompts on the same sides. The prompts are the shortest ones; with --max_chars,
they are drawn by --seed from those up to that length. --seed also draws the held-out prompts. Length is in characters,
of the prompt and all its responses in all files together.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from openrlhf_gpm.data import PreferenceGroup, merge_prompts, read_preferences, write_groups


def length(groups: list[PreferenceGroup]) -> int:
    prompt = groups[0].prompt
    text = prompt if isinstance(prompt, str) else "".join(turn["content"] for turn in prompt)
    return len(text) + sum(map(len, {response for group in groups for response in group.responses}))


def write(path: Path, groups: list[PreferenceGroup]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_groups(path, groups)
    print(f"{path}: {len(groups)} prompts, {sum(len(group.comparisons) for group in groups)} comparisons")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--prompts", type=int, default=96, help="take this many prompts (default 96)")
    parser.add_argument("--max_chars", type=int, help="draw from prompts up to this length, not the shortest")
    parser.add_argument("--held_out", type=int, default=32, help="keep this many of them for evaluation (default 32)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files = {path.stem: merge_prompts(group for _, group in read_preferences(path)) for path in args.data}
    by_prompt: dict[str, dict[str, PreferenceGroup]] = {}
    for name, groups in files.items():
        for group in groups:
            by_prompt.setdefault(json.dumps(group.prompt), {})[name] = group
    everywhere = [found for found in by_prompt.values() if len(found) == len(files)]
    lengths = {id(found): length(list(found.values())) for found in everywhere}
    if args.max_chars is None:
        chosen = sorted(everywhere, key=lambda found: lengths[id(found)])[: args.prompts]
        random.Random(args.seed).shuffle(chosen)
    else:
        short = [found for found in everywhere if lengths[id(found)] <= args.max_chars]
        chosen = random.Random(args.seed).sample(short, min(args.prompts, len(short)))
    for name in files:
        for part, some in (("held_out", chosen[: args.held_out]), ("train", chosen[args.held_out :])):
            write(args.output / name / f"{part}.jsonl", [found[name] for found in some])


if __name__ == "__main__":
    main()
