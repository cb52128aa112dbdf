"""The attention of a trunk that reads forests: which kernel reads one, and transformers' own for everything else.

The forest is a keyword argument of the trunk, which passes such arguments on to its attention. A mask of one element
keeps transformers from building one. `models/trunks.py` finds the trunks for which this does not work.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask, sdpa_mask

from openrlhf_gpm.models.attention import flash, sdpa
from openrlhf_gpm.samples.forest import Forest

# transformers imports a flash attention for every name with "flash" in it.
FLASH_FORESTS = {
    "flash_attention_2": "fa2_forest",
    "flash_attention_3": "fa3_forest",
    "kernels-community/flash-attn2": "fa2_hub_forest",  # what transformers takes where flash-attn is not installed
    "kernels-community/vllm-flash-attn3": "fa3_hub_forest",
}
FORESTS = {"sdpa": "sdpa_forest"} | FLASH_FORESTS
"""Attention of transformers -> the name of the same attention that reads forests too."""


def read_forest(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    forest: Forest | None = None,
    rest: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, N, d), key and value (1, shared heads, N, d) -> (1, N, heads, d), and no weights.

    Without a forest this is `rest`. Raises RuntimeError if only one of forest and mask arrived, if a sample is longer
    than the sliding window, or if a bias goes by places in the row.
    """
    one_element = attention_mask is not None and attention_mask.numel() == 1
    if forest is not None and one_element:
        _check_exact(module, forest, **kwargs)
        if flash.can_read(query, key, value, kwargs.get("dropout", 0.0)):
            return flash.read(query, key, value, forest, kwargs.get("scaling")), None
        return sdpa.read(module, query, key, value, forest, **kwargs), None
    if forest is not None or (one_element and key.shape[-2] > 1):  # a sample of one token has such a mask too
        raise RuntimeError(f"{type(module).__name__} did not receive the forest as it was sent; see `forest_obstacle`")
    return rest(module, query, key, value, attention_mask, **kwargs)


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


class Renamed:
    """Another object, except for the attributes given."""

    def __init__(self, of: Any, **changes: Any) -> None:
        self.__dict__.update(changes, _of=of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def flash_rest(name: str, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' flash attention `name`: it reads which one from the config, where a trunk has our name for it."""
    config = Renamed(module.config, _attn_implementation=name)
    return flash_attention_forward(Renamed(module, config=config), *args, **kwargs)


AttentionInterface.register(FORESTS["sdpa"], read_forest)
AttentionMaskInterface.register(FORESTS["sdpa"], sdpa_mask)
for attention, ours in FLASH_FORESTS.items():
    AttentionInterface.register(ours, partial(read_forest, rest=partial(flash_rest, attention)))
    AttentionMaskInterface.register(ours, flash_attention_mask)
