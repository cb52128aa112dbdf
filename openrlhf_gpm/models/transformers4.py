"""config.json for transformers 4 and 5 alike: what 5 moved is written under its old names too.

transformers 5 keeps the rotary embedding in `rope_parameters` and the dtype in `dtype`. transformers 4, and what is
built on it, reads `rope_theta`, `rope_scaling` and `torch_dtype`, and takes theta 10000 without a word where it finds
none. transformers 5 reads both spellings together as the same model.
"""

from collections.abc import Mapping
from typing import Any

OUTSIDE = ("rope_theta", "partial_rotary_factor")
"""Keys of `rope_parameters` that transformers 4 has beside `rope_scaling`, not in it."""


def old_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a config, as JSON, lacks for transformers 4; none where it has no `rope_parameters` or `dtype`."""
    added: dict[str, Any] = {}
    rope = config.get("rope_parameters") or {}
    by_layer = bool(rope) and all(isinstance(value, Mapping) for value in rope.values())
    if by_layer:  # gemma 3: its layers with a sliding window have a theta of their own, and no scaling
        if local := rope.get("sliding_attention"):
            added["rope_local_base_freq"] = local["rope_theta"]
        rope = rope.get("full_attention", {})
    added |= {name: rope[name] for name in OUTSIDE if rope.get(name) is not None}
    if config.get("model_type") == "gpt_neox" and rope:
        added |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    if rope.get("rope_type", "default") != "default" and not by_layer:
        added["rope_scaling"] = {name: value for name, value in rope.items() if name not in OUTSIDE}
    if config.get("dtype"):
        added["torch_dtype"] = str(config["dtype"]).removeprefix("torch.")
    return added


def write_old_names(config: Any) -> None:
    """Let a transformers config carry the rotary embedding's `old_names` into every config.json written from it.

    They go past its attributes, in which transformers 5 makes `rope_scaling` another name of `rope_parameters`.
    `torch_dtype`, of which it would warn, is added to the file instead, where that is ours to write.
    """
    known = {"model_type": config.model_type, "rope_parameters": vars(config).get("rope_parameters")}
    vars(config).update(old_names(known))
