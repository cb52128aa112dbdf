"""What a group of K responses costs: K embeddings and one matrix, against K (K - 1) concatenated pairs.

Two claims, each with its numbers checked before its speed is printed:
1. the score matrix is one batched product, not a Python loop over pairs;
2. a GPM embeds each response once, a pairwise encoder reads every ordered pair of them.

usage: python benchmarks/group_scoring.py [--output benchmarks.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from timing import compare
from transformers import LlamaConfig

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.core import group_scores, preference_score
from openrlhf_gpm.models.gpm import gpm_class

GROUP_SIZES = (2, 4, 8, 16)
PROMPT, RESPONSE = 128, 64
TRUNK = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}


def score_matrix(k: int) -> dict:
    """The matrix of 64 groups by loop and by product."""
    v, gate = torch.randn(64, k, 8), torch.rand(64, 4)

    def loop() -> torch.Tensor:
        rows = [
            torch.stack([preference_score(v[g, i], v[g, j], gate[g]) for j in range(k)])
            for g in range(len(v))
            for i in range(k)
        ]
        return torch.stack(rows).view(len(v), k, k)

    torch.testing.assert_close(group_scores(v, gate), loop(), atol=1e-5, rtol=1e-5)
    return result(f"matrix, K = {k}", compare(loop, lambda: group_scores(v, gate), pairs=7))


def group_forwards(k: int, model: torch.nn.Module) -> dict:
    """One group: K sequences of prompt + response, or K (K - 1) of prompt + response + response."""
    prompt = torch.randint(5, 1000, (1, PROMPT))
    responses = torch.randint(5, 1000, (k, RESPONSE))
    i, j = (~torch.eye(k, dtype=torch.bool)).nonzero(as_tuple=True)
    alone = torch.cat([prompt.expand(k, -1), responses], 1)
    paired = torch.cat([prompt.expand(len(i), -1), responses[i], responses[j]], 1)
    lens = torch.full((len(paired),), PROMPT)

    def embed() -> torch.Tensor:
        return group_scores(*model(alone, prompt_lens=lens[:k]))

    def encode_pairs() -> torch.Tensor:
        return torch.cat([model(chunk, prompt_lens=lens[: len(chunk)])[0] for chunk in paired.split(16)])

    with torch.no_grad():
        assert embed().shape == (k, k)
        ratio = compare(encode_pairs, embed, pairs=7)
    return result(f"forwards, K = {k}", ratio) | {"tokens_ratio": paired.numel() / alone.numel()}


def result(name: str, ratio) -> dict:
    row = {"name": name, **vars(ratio)}
    print(
        f"{name:18} {ratio.median:7.1f}x  [{ratio.low:.1f}, {ratio.high:.1f}]   "
        f"{ratio.slow_seconds * 1e3:9.2f} ms -> {ratio.fast_seconds * 1e3:.2f} ms",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/group_scoring.json"))
    output = parser.parse_args().output
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=1000, num_key_value_heads=4, gpm=GPMConfig(dim=8).to_dict(), **TRUNK)
    model = gpm_class(config)(config).eval()
    rows = [score_matrix(k) for k in GROUP_SIZES] + [group_forwards(k, model) for k in GROUP_SIZES]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"written to {output}")


if __name__ == "__main__":
    main()
