"""Attention of a forest part by part (`samples/forest.py`), each in one call of torch's sdpa."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from openrlhf_gpm.samples.forest import Forest, Part

SHORT = 192
"""From this many queries on, the CPU kernel uses larger blocks."""


def read(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, forest: Forest, **kwargs: Any) -> Tensor:
    """query (1, heads, N, d), key and value (1, shared heads, N, d) -> (1, N, heads, d)."""
    parts = forest.parts
    queries = _take(query, forest.queries, [(part.rows, part.width) for part in parts])
    keys, values = (_take(x, forest.keys, [(part.rows, part.seen) for part in parts]) for x in (key, value))
    out = [
        _attend(module, q, k, v, part, **kwargs).flatten(0, 1)  # (R W, heads, d)
        for part, q, k, v in zip(parts, queries, keys, values, strict=True)
    ]
    return torch.cat(out).index_select(0, forest.back)[None]


def _take(x: Tensor, places: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """(1, heads, N, d), (sum of R T,), [(R, T)] -> [(R, heads, T, d)]."""
    taken = x.squeeze(0).transpose(0, 1).index_select(0, places).split([rows * width for rows, width in shapes])
    return [x.unflatten(0, shape).transpose(1, 2) for x, shape in zip(taken, shapes, strict=True)]


def _attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, part: Part, **kwargs: Any) -> Tensor:
    """(R, heads, W, d) and twice (R, shared heads, S + W, d) -> (R, W, heads, d)."""
    if part.prefix_lens is None:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)[0]
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, part.mask(1, torch.bool), **kwargs)[0]
    # With a mask, transformers copies keys and values for each query head, because GPU kernels would otherwise be
    # slow. The CPU kernel reads shared heads in place and is faster with many queries, so for short branches the
    # queries of all heads that share a key are put in one line.
    copies = query.shape[1] // key.shape[1] if part.width < SHORT else 1
    line = query.unflatten(1, (-1, copies)).flatten(2, 3)  # (R, heads / copies, copies W, d)
    mask, dropout, scale = part.mask(copies, query.dtype), kwargs.get("dropout", 0.0), kwargs.get("scaling")
    out = F.scaled_dot_product_attention(line, key, value, mask, dropout, scale=scale, enable_gqa=True)
    return out.unflatten(2, (copies, part.width)).permute(0, 3, 1, 2, 4).flatten(2, 3)
