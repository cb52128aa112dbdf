"""Scoring groups with vLLM: prefix caching on and off, and our own prompt sharing in transformers.

SmolLM2-135M in fp32, exported by `openrlhf-gpm convert --to classifier`; the embeddings of all arms are compared
before a speed is printed. Every repetition has new token ids, so that nothing is cached from the one before.

usage: python benchmarks/vllm_prefix.py [--prompt 256 --response 64 --k 8 32 --groups 4] [--pairs 3]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from smollm2 import OUTPUTS, checkpoints, load_gpm_fp32, random_group
from timing import compare

from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.scoring.torch_backend import TorchBackend
from openrlhf_gpm.scoring.vllm_backend import VLLMBackend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    path = checkpoints()["gpm"]
    exported = path.with_name("classifier")
    if not exported.exists():
        convert(path, exported, from_="gpm", to="classifier")
    backends = {
        "vllm, no cache": VLLMBackend(exported, share_prompt="off"),
        "vllm, prefix cache": VLLMBackend(exported),
        "transformers, prompt once": TorchBackend(load_gpm_fp32(path)),
    }
    seeds = count()
    rows = [row for k in args.k for row in measure(k, backends, seeds, args)]
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / "vllm_prefix.json").write_text(json.dumps({"settings": vars(args), "rows": rows}, indent=2) + "\n")
    print(f"written to {OUTPUTS / 'vllm_prefix.json'}; torch {torch.__version__}")


def measure(k: int, backends: dict[str, Any], seeds: Iterator[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of groups of k: each backend against vLLM without its cache."""

    def groups() -> list[Any]:
        return [random_group(args.prompt, args.response, k, next(seeds)) for _ in range(args.groups)]

    same = groups()
    embeddings = [backend.embed_groups(same)[0] for backend in backends.values()]
    for other in embeddings[1:]:
        difference = (other - embeddings[0]).abs().max() / embeddings[0].abs().max()
        assert difference <= 1e-3, f"the backends disagree by {difference}"

    slow, rows = backends["vllm, no cache"], []
    for name, fast in list(backends.items())[1:]:
        ratio = compare(lambda: slow.embed_groups(groups()), lambda fast=fast: fast.embed_groups(groups()), args.pairs)
        rows.append({"name": name, "k": k, **vars(ratio)})
        print(
            f"{args.prompt}/{args.response} K={k}, {args.groups} groups: vllm, no cache -> {name:26} "
            f"{ratio.median:5.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]  {ratio.slow_seconds:.2f} s -> "
            f"{ratio.fast_seconds:.2f} s",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
