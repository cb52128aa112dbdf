"""Which trunks read forests (`samples/forest.py`), and how long a sample may be.

The trunk is built on the meta device, without memory for weights, and called once: it must hand the forest on to its
attention. Groups are encoded in full for trunks that do not.
"""

import inspect
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, PretrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.masking_utils import sdpa_mask

from openrlhf_gpm.models.attention.choose import FLASH_FORESTS, FORESTS

LAYERS = {"full_attention", "sliding_attention"}
SDPA = {"sdpa", FORESTS["sdpa"]}
FLASH = {*FLASH_FORESTS, *FLASH_FORESTS.values()}
PROBE = "forest_probe"
UNREAD = {"softcap": "a soft cap", "s_aux": "attention sinks"}
"""Keyword arguments of attention that neither kernel for forests reads."""


def trunk_class(config: PretrainedConfig) -> Any:
    """The model class of a config, without a head. Raises ValueError if transformers has none."""
    try:
        return AutoModel._model_mapping[type(config)]
    except KeyError:
        raise ValueError(f"transformers has no trunk for model type {config.model_type!r}: use a causal LM") from None


def use_forest_attention(trunk: Any) -> None:
    """Switch a trunk to the same attention that also reads forests. Raises ValueError if it cannot."""
    if trunk.config._attn_implementation in FORESTS.values():
        return
    obstacle = forest_obstacle(trunk.config)
    if obstacle:
        raise ValueError(f"{type(trunk).__name__} does not read forests: {obstacle}")
    trunk.set_attn_implementation(FORESTS[trunk.config._attn_implementation])


def forest_obstacle(config: PretrainedConfig, attention: str | None = None) -> str | None:
    """Why a trunk's samples must be encoded in full; None if it reads forests and the numbers stay the same.

    attention: what the trunk is going to have, in transformers' words; None: what the config says.
    """
    text = config.get_text_config(decoder=True)
    for rope in _rope_types(text):
        if "dynamic" in rope or rope in ("longrope", "su"):
            return f"its rotary embedding ({rope}) depends on the length of the whole sample"
    others = sorted(set(get_layer_types_and_kwargs(text)[0]) - LAYERS)
    if others:
        return f"it has layers that are not attention ({', '.join(others)})"
    if getattr(text, "alibi", False):
        return "its attention goes by places in the row (ALiBi), not by positions"
    attention = attention or config._attn_implementation
    if attention is None or attention in SDPA | FLASH:
        config = deepcopy(config)
        if attention in FLASH:
            config._attn_implementation = "eager"  # so that it can be built where the package or the GPU is missing
        with torch.device("meta"):
            trunk = trunk_class(config)(config)
        if attention not in FLASH:
            attention = trunk.config._attn_implementation  # transformers may have taken another
        if attention in SDPA | FLASH and trunk._can_set_attn_implementation():
            return _obstacle_in(trunk, attention)
    return f"its attention ({attention}) is not the sdpa or flash attention of transformers' AttentionInterface"


def _obstacle_in(trunk: Any, attention: str) -> str | None:
    """What keeps a trunk on the meta device from reading forests (consumes the trunk)."""
    if getattr(trunk, "_is_stateful", False):
        return "its layers are recurrent"
    if any(getattr(module, "is_causal", True) is False for module in trunk.get_decoder().modules()):
        return "its attention looks ahead"
    missing = {"position_ids", "attention_mask"} - set(inspect.signature(trunk.forward).parameters)
    if missing:
        return f"its forward does not take {', '.join(sorted(missing))}"
    trunk.set_attn_implementation(PROBE)
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    try:
        trunk(ids, position_ids=ids, attention_mask=mask, use_cache=False, forest="here")
    except _Asked as asked:
        arrived, ignored = asked.args
        if arrived and (not ignored or attention in SDPA):  # sdpa ignores these in full encoding as well
            return None
        if arrived:
            return f"its flash attention has {ignored}, which is not implemented for forests"
    except RuntimeError as error:  # it reads a value before its first attention; tensors on the meta device have none
        return f"it cannot be checked without weights ({type(error).__name__}: {error})"
    return "it does not hand the forest on to its attention"


class _Asked(Exception):
    """Raised by a trunk's first call of attention, with whether the forest arrived."""


def _answer(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    ignored = [text for name, text in UNREAD.items() if kwargs.get(name) is not None]
    arrived = "forest" in kwargs and attention_mask is not None and attention_mask.numel() == 1
    raise _Asked(arrived, " and ".join(ignored))


AttentionInterface.register(PROBE, _answer)
AttentionMaskInterface.register(PROBE, sdpa_mask)


def sliding_window(config: Any) -> int | None:
    """Length of a model's sliding window, in tokens; None without one. Longer samples do not fit into it."""
    config = config.get_text_config(decoder=True)
    layer_types, options = get_layer_types_and_kwargs(config)
    return options["sliding_window"] if "sliding_attention" in layer_types else None


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest sample that a trunk can read, in tokens; None where its config names no limit.

    Rotary embeddings that are stretched (`factor`) read more than max_position_embeddings, unless this counts it.
    """
    text = config.get_text_config(decoder=True)
    longest = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type"))
    if longest is None or kind not in ("linear", "dynamic", "yarn"):
        return longest
    return int(rope.get("original_max_position_embeddings", longest) * rope["factor"])


def _rope_types(config: Any) -> Iterator[str]:
    """Yields the kinds of rotary embedding in a config: one for the model, or one per type of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        value = getattr(config, name, None) or {}
        for rope in (value, *value.values()):
            if isinstance(rope, dict):
                yield str(rope.get("rope_type", rope.get("type", "default")))
