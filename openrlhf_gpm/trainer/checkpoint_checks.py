"""What both commands of OpenRLHF check of a GPM's flags and of the model they start from."""

from __future__ import annotations

from types import SimpleNamespace


def check_parallelism(args: SimpleNamespace) -> None:
    """Refuse --ds.* flags that a GPM does not support."""
    if args.ds.value_head_prefix != "score":
        raise ValueError(f"--ds.value_head_prefix must be score for a GPM, got {args.ds.value_head_prefix}")
    if args.ds.ring_attn_size > 1:
        raise ValueError("--ds.ring_attn_size must be 1 for a GPM: ring attention is not supported")
