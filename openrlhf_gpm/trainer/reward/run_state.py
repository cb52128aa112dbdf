"""A training run owns its folders: a lock while it lives, and in run.json what defines it.

Two runs in one folder would mix their checkpoints, and a checkpoint that goes on with another model, other data or
another loss is no run that anybody asked for. So both are refused, with the difference named.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm.files import read_object, write
from openrlhf_gpm.fingerprint import changes, fingerprint
from openrlhf_gpm.flags import all_flags
from openrlhf_gpm.lock import lock
from openrlhf_gpm.outputs import check_output

logger = init_logger(__name__)

LOCK = ".run.lock"
DEFINING = (
    *(
        "reward_model_type",
        "gpm.",
        "model.",
        "data.",
        "train.",
        "optim",
        "adam.",
        "muon.",
        "lr_",
        "min_lr",
        "max_norm",
    ),
    *("ds.lora", "ds.param_dtype", "ds.load_in_4bit"),
)
HARMLESS = ("gpm.share_prompt", "gpm.save_best", "train.micro_batch", "data.dataloader", "data.disable_fast")
"""How flags begin that define a run, and those among them that do not: memory, speed, saving."""

INPUTS = ("model.model_name_or_path", "data.dataset")
"""Known by content, so that a folder may move, or by name on the Hub."""

OUTPUTS = ("ckpt.output_dir", "ckpt.path")


def check_folders(args: SimpleNamespace) -> None:
    """Raise ValueError where an output is an input, lies in one or contains one. Writes nothing."""
    inputs = [(f"--{flag}", path) for flag in (*INPUTS, "eval.dataset") for path in _paths(_value(args, flag))]
    for flag in OUTPUTS:
        check_output(_value(args, flag), f"--{flag}", inputs)


def own_folders(args: SimpleNamespace) -> None:
    """Take the run's folders: lock each, compare the run that is in them, and write what defines this one.

    Raises ValueError where another run lives there, or left work that was made by other flags, models or data; and for
    a checkpoint that cannot be resumed.
    """
    if int(os.environ.get("RANK", "0")):  # rank 0 acts for all
        return
    folders = [Path(_value(args, flag)) for flag in OUTPUTS if flag != "ckpt.path" or _uses_checkpoints(args)]
    for flag, folder in zip(OUTPUTS, folders, strict=False):
        lock(folder / LOCK, f"--{flag} {folder}")
    state = run_state(args)
    for flag, folder in zip(OUTPUTS, folders, strict=False):
        _check_earlier(args, flag, folder, state)
    if args.ckpt.load_enable:
        check_resume(Path(args.ckpt.path))
    for folder in folders:
        write(folder / "run.json", json.dumps(state, indent=2) + "\n")


def run_state(args: SimpleNamespace) -> dict[str, Any]:
    """What defines the run, in JSON's types: flags by value, inputs by fingerprint or name."""
    given = dict(all_flags(args))
    flags = {f"--{name}": value for name, value in given.items() if name.startswith(DEFINING)}
    flags = {name: value for name, value in flags.items() if not name[2:].startswith(HARMLESS)}
    for flag in INPUTS:
        paths = _paths(_value(args, flag))
        flags[f"--{flag}"] = ",".join(fingerprint(Path(path)) for path in paths) or _value(args, flag)
    state: dict[str, Any] = json.loads(json.dumps(flags))  # tuples become lists
    return state


def check_resume(folder: Path) -> None:
    """Raise ValueError for a checkpoint of DeepSpeed's that is not there or was cut off, and name those that are."""
    latest = folder / "latest"
    if not latest.exists():
        logger.info(f"--ckpt.load_enable: no checkpoint in --ckpt.path {folder}: starting at step 0")
        return
    named = folder / (latest.read_text(encoding="utf-8").strip() or "(nothing)")
    cut = [file for file in named.glob("*.pt") if not zipfile.is_zipfile(file)] if named.is_dir() else [named]
    if cut:
        others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path != named)
        remedy = f"write one of {', '.join(others)} into {latest}" if others else f"delete {folder} to start over"
        raise ValueError(f"--ckpt.load_enable: {cut[0]} is missing or cut off: {remedy}")


def _check_earlier(args: SimpleNamespace, flag: str, folder: Path, state: dict[str, Any]) -> None:
    """Compare the run that left work in a folder; a folder without any may be taken."""
    if not ((folder / "config.json").exists() or (folder / "latest").exists()):
        return
    if not (folder / "run.json").exists():
        raise ValueError(f"--{flag} {folder} holds a model or checkpoints, but no run.json: name another folder")
    earlier = read_object(folder / "run.json", "name another folder")
    known = {name: value for name, value in state.items() if name in earlier}  # flags of another version do not count
    if changed := changes({name: earlier[name] for name in known}, known):
        raise ValueError(
            f"--{flag} {folder} holds a run with other flags: {'; '.join(changed)}. Give those again, name another "
            "folder, or delete this one"
        )
    if not args.ckpt.load_enable:
        logger.warning(f"--{flag} {folder}: the run that is there starts over; --ckpt.load_enable would continue it")


def _uses_checkpoints(args: SimpleNamespace) -> bool:
    return bool(args.ckpt.save_steps != -1 or args.ckpt.load_enable)


def _value(args: SimpleNamespace, flag: str) -> Any:
    group, _, name = flag.partition(".")
    return getattr(getattr(args, group), name)


def _paths(given: str | None) -> list[str]:
    """The local files and folders in a comma-separated flag; nothing where a part is a name on the Hub."""
    parts = [part.partition("@")[0].strip() for part in (given or "").split(",")]
    return parts if all(part and os.path.exists(part) for part in parts) else []
