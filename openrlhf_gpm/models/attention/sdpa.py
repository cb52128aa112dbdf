"""transformers' "sdpa" attention that also reads a forest (`samples/forest.py`), part by part.

The forest is a keyword argument of the trunk, which passes such arguments on to its attention. A mask of one element
keeps transformers from building one. `models/trunks.py` finds the trunks for which this does not work.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from openrlhf_gpm.samples.forest import Forest, Part

FOREST_ATTENTION = "sdpa_forest"

SHORT = 192
"""From this many queries on, the CPU kernel uses larger blocks."""


def sdpa_forest(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    forest: Forest | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, N, d), key and value (1, shared heads, N, d) -> (1, N, heads, d), and None for the weights.

    Without a forest this is "sdpa". Raises RuntimeError if only one of forest and mask arrived, if a sample is longer
    than the sliding window, or if a bias goes by places in the row.
    """
    one_element = attention_mask is not None and attention_mask.numel() == 1
    if forest is not None and one_element:
        _check_exact(module, forest, **kwargs)
        return _read(module, query, key, value, forest, **kwargs)
    if forest is not None or (one_element and key.shape[-2] > 1):  # a sample of one token has such a mask too
        raise RuntimeError(f"{type(module).__name__} did not receive the forest as it was sent; see `forest_obstacle`")
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _check_exact(
    module: torch.nn.Module,
    forest: Forest,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> None:
    name = type(module).__name__
    if sliding_window is not None and forest.longest > sliding_window:
        raise RuntimeError(
            f"{name} has a sliding window of {sliding_window} tokens, a sample has {forest.longest}: encode in full"
        )
    if position_bias is not None:
        raise RuntimeError(f"{name} adds a bias by places in the row, not by positions: encode in full")


def _read(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, forest: Forest, **kwargs: Any
) -> tuple[Tensor, None]:
    parts = forest.parts
    queries = _take(query, forest.queries, [(part.rows, part.width) for part in parts])
    keys, values = (_take(x, forest.keys, [(part.rows, part.seen) for part in parts]) for x in (key, value))
    out = [
        _attend(module, q, k, v, part, **kwargs).flatten(0, 1)  # (R W, heads, d)
        for part, q, k, v in zip(parts, queries, keys, values, strict=True)
    ]
    return torch.cat(out).index_select(0, forest.back)[None], None


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


AttentionInterface.register(FOREST_ATTENTION, sdpa_forest)
AttentionMaskInterface.register(FOREST_ATTENTION, sdpa_mask)
