"""What a model's folder must be before either command of OpenRLHF starts; each error names the flag and the remedy."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from transformers import AutoConfig

from openrlhf_gpm.checkpoints.checkpoint import read_adapter
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.trunks import forest_obstacle, sliding_window


def check_layout(gpm: GPMConfig, path: str, flag: str) -> None:
    """Refuse a GPM in a plain classifier's tensor layout. `flag` gave `path`."""
    if gpm.layout == "classifier":
        raise ValueError(
            f"{flag} {path} is in the layout of a plain classifier: use `openrlhf-gpm convert --from classifier --to "
            "gpm` first"
        )


def check_whole(path: str, flag: str) -> None:
    """Refuse a LoRA adapter, which OpenRLHF cannot load. `flag` gave `path`."""
    if os.path.isdir(path) and read_adapter(Path(path)) is not None:
        raise ValueError(
            f"{flag} {path} is a LoRA adapter: merge it into its base model first, `openrlhf-gpm convert --from gpm "
            "--to gpm`"
        )


def check_parallelism(args: SimpleNamespace) -> None:
    """Refuse --ds.* flags that a GPM does not support."""
    if args.ds.value_head_prefix != "score":
        raise ValueError(f"--ds.value_head_prefix must be score for a GPM, got {args.ds.value_head_prefix}")
    if args.ds.ring_attn_size > 1:
        raise ValueError("--ds.ring_attn_size must be 1 for a GPM: ring attention is not supported")


def training_forest_obstacle(path: str, ds: SimpleNamespace, max_len: int | None) -> str | None:
    """Why the trunk at `path` cannot read a group as a tree (`samples/forest.py`) under the --ds.* flags, or None."""
    if ds.attn_implementation != "sdpa":
        return f"--ds.attn_implementation {ds.attn_implementation} reads no trees, sdpa does"
    config = AutoConfig.from_pretrained(path)
    window = sliding_window(config)
    if window is not None and (max_len is None or max_len > window):
        return f"the trunk's sliding window is shorter ({window}) than --data.max_len {max_len}"
    return forest_obstacle(config)
