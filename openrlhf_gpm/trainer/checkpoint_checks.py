"""What both commands of OpenRLHF check of a GPM's flags and of the model they start from."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from types import SimpleNamespace

from openrlhf_gpm.checkpoints.trust import check_trust


def check_trusted(args: SimpleNamespace, flags: Iterable[str]) -> None:
    """Refuse models that bring code, which OpenRLHF would run unasked. flags: names without the dashes."""
    for flag in flags:
        if name := attrgetter(flag)(args):
            try:
                check_trust(name, args.trust_remote_code)
            except ValueError as error:
                raise ValueError(f"--{flag} {error}") from error


def check_parallelism(args: SimpleNamespace) -> None:
    """Refuse --ds.* flags that a GPM does not support."""
    if args.ds.value_head_prefix != "score":
        raise ValueError(f"--ds.value_head_prefix must be score for a GPM, got {args.ds.value_head_prefix}")
    if args.ds.ring_attn_size > 1:
        raise ValueError("--ds.ring_attn_size must be 1 for a GPM: ring attention is not supported")


def reward_attention(args: SimpleNamespace) -> tuple[str, bool]:
    """The attention of the reward actor's GPM in transformers' words, and whether samples are packed.

    --gpm.attn_implementation auto takes what the policy takes, --ds.attn_implementation and --ds.packing_samples.
    """
    asked, choice = args.ds.attn_implementation, args.gpm.attn_implementation
    if choice == "auto" or choice in asked:
        return asked, args.ds.packing_samples
    if choice == "flash":
        return "flash_attention_2", args.ds.packing_samples
    return "sdpa", False  # packed samples would need a mask of the whole row by itself
