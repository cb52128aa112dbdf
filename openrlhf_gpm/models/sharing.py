"""Which trunks can read groups as trees, and how long the samples may be."""

import inspect
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from openrlhf_gpm.models.attention import FOREST_ATTENTION, hands_on_forests

ATTENTION = {"full_attention", "sliding_attention"}


def trunk_class(config: PretrainedConfig) -> Any:
    """The class of a config's model without a head. Raises ValueError where transformers has none."""
    try:
        return AutoModel._model_mapping[type(config)]
    except KeyError:
        raise ValueError(f"transformers has no trunk for model type {config.model_type!r}: use a causal LM") from None


def sharing_obstacle(config: PretrainedConfig) -> str | None:
    """Why the samples of a trunk must be encoded in full; None where groups can be read as trees, exactly.

    The trunk is built without memory for its weights and asked.
    """
    text = config.get_text_config(decoder=True)
    for rope in _rope_types(text):
        if "dynamic" in rope or rope in ("longrope", "su"):
            return f"its rotary embedding ({rope}) depends on the length of the whole sample"
    others = sorted(set(get_layer_types_and_kwargs(text)[0]) - ATTENTION)
    if others:
        return f"it has layers of another kind than attention ({', '.join(others)})"
    if getattr(text, "alibi", False):
        return "its attention looks at places in the row (ALiBi), not at positions"
    with torch.device("meta"):
        trunk = trunk_class(config)(deepcopy(config))
    if getattr(trunk, "_is_stateful", False):
        return "its layers are recurrent"
    if any(getattr(module, "is_causal", True) is False for module in trunk.modules()):
        return "its attention looks ahead"
    missing = {"position_ids", "attention_mask"} - set(inspect.signature(trunk.forward).parameters)
    if missing:
        return f"its forward takes no {', '.join(sorted(missing))}"
    attention = trunk.config._attn_implementation
    if attention not in ("sdpa", FOREST_ATTENTION) or not trunk._can_set_attn_implementation():
        return f"its attention ({attention}) is not transformers' sdpa"
    return None if hands_on_forests(trunk) else "its attention is not told which tokens belong together"


def sliding_window(config: Any) -> int | None:
    """Longest sample, in tokens, that a model's sliding windows leave whole; None where there is none."""
    config = config.get_text_config(decoder=True)
    layer_types, options = get_layer_types_and_kwargs(config)
    return options["sliding_window"] if "sliding_attention" in layer_types else None


def _rope_types(config: Any) -> Iterator[str]:
    """Every kind of rotary embedding in a config: one for the model, or one for each type of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        value = getattr(config, name, None) or {}
        for rope in (value, *value.values()):
            if isinstance(rope, dict):
                yield str(rope.get("rope_type", rope.get("type", "default")))
