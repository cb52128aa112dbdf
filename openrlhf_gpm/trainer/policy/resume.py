"""What a run's folder of DeepSpeed checkpoints holds: nothing, a whole checkpoint, or one that cannot be resumed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm.files import write

logger = init_logger(__name__)

SHARD = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_(?:optim|model)_states\.pt$")


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `latest` below FOLDER/_actor names, or None where none was completed.

    DeepSpeed empties `latest` before it writes a name, when every rank has saved. A file that a kill left empty
    therefore stands for the newest checkpoint.
    """
    latest = folder / "_actor" / "latest"
    if not latest.exists():
        return None
    if name := latest.read_text(encoding="utf-8").strip():
        return latest.with_name(name)
    saved = (path for path in latest.parent.iterdir() if path.is_dir())
    return max(saved, key=lambda path: path.stat().st_mtime, default=latest.with_name("(nothing)"))


def zero_ranks(checkpoint: Path) -> int:
    """Ranks whose ZeRO shards a checkpoint holds; 0 for one that ZeRO did not divide."""
    shards = (SHARD.search(file.name) for file in checkpoint.iterdir())
    return len({shard[1] for shard in shards if shard})


def check_resume(args: SimpleNamespace) -> None:
    """Say where --ckpt.load_enable takes the run up. Raises ValueError for a checkpoint that DeepSpeed cannot load."""
    if not args.ckpt.load_enable:
        return
    folder = Path(args.ckpt.path)
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        killed = (folder / "_actor").exists()
        why = "an earlier run was killed before its first checkpoint was complete" if killed else "it is a new run"
        logger.info(f"--ckpt.load_enable: no checkpoint in --ckpt.path {folder} ({why}): starting at step 0")
        return
    if not checkpoint.is_dir():
        whole = sorted(path.name for path in checkpoint.parent.iterdir() if path.is_dir())
        remedy = f"write one of {', '.join(whole)} into that file" if whole else f"delete {checkpoint.parent}"
        raise ValueError(f"{checkpoint.parent / 'latest'} names {checkpoint.name}, which is not there: {remedy}")
    saved, ranks = zero_ranks(checkpoint), actor_ranks(args)
    if saved not in (0, ranks) and not args.ds.use_universal_ckpt:
        raise ValueError(
            f"--ckpt.load_enable: {checkpoint} was saved by {saved} ranks and this run's actor has {ranks} "
            f"(--actor.num_nodes times --actor.num_gpus_per_node): use {saved} again, or delete {folder} to start over"
        )
    latest = checkpoint.with_name("latest")
    if not latest.read_text(encoding="utf-8").strip():
        write(latest, checkpoint.name)
    logger.info(f"--ckpt.load_enable: continuing from {checkpoint}")


def actor_ranks(args: SimpleNamespace) -> int:
    """Ranks over which ZeRO divides the policy's states."""
    return int(args.actor.num_nodes * args.actor.num_gpus_per_node // args.ds.tensor_parallel_size)
