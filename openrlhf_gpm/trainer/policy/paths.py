"""Local paths of a run: absolute, because Ray's workers run in other folders, and outputs apart from inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODELS = ("actor.model_name_or_path", "reward.model_name_or_path", "critic.model_name_or_path", "frozen.ref")
DATASETS = ("data.prompt_dataset",)
EMBEDDINGS = ("gpm.league", "gpm.history")
"""Files and folders with other answers' embeddings, which only the driver reads."""
CHECKPOINTS = ("ckpt.output_dir", "ckpt.path")
LOGS = ("gpm.log_groups", "logger.tensorboard_dir")
LOCAL = ("/", "./", "../", "~")
"""How a path begins that is no name of the Hub even if nothing is there."""


def absolute_paths(args: SimpleNamespace) -> None:
    """Make every local path in parsed arguments absolute; names of the Hub stay as they are.

    Raises ValueError for a model that is not there, and for an output path that would write over an input.
    """
    for flag in MODELS:
        if path := value(args, flag):
            _set(args, flag, _absolute_model(path, flag))
    for flag in DATASETS:
        if given := value(args, flag):
            _set(args, flag, ",".join(_absolute_dataset(each) for each in given.split(",")))
    for flag in EMBEDDINGS:
        if given := value(args, flag):
            _set(args, flag, ",".join(_absolute(each) for each in given.split(",")))
    for flag in (*CHECKPOINTS, *LOGS):
        if path := value(args, flag):
            _set(args, flag, _absolute(path))
    _check_apart(args)


def local_inputs(args: SimpleNamespace) -> dict[str, list[Path]]:
    """Files and folders that the run reads, by flag; nothing for a name of the Hub. After `absolute_paths`."""
    found: dict[str, list[Path]] = {}
    for flag in MODELS:
        path = value(args, flag)
        found[flag] = [Path(path)] if path and os.path.isabs(path) else []
    for flag in DATASETS:
        parts = (each.partition("@")[0] for each in (value(args, flag) or "").split(","))
        found[flag] = [Path(path) for path in parts if os.path.isabs(path)]
    for flag in EMBEDDINGS:
        found[flag] = [Path(path) for path in (value(args, flag) or "").split(",") if path]
    return found


def checkpoint_folders(args: SimpleNamespace) -> dict[str, Path]:
    """Folders that the run keeps models and checkpoints in, by flag; those it never opens are left out."""
    used = {"ckpt.output_dir": Path(args.ckpt.output_dir)}
    if args.ckpt.save_steps != -1 or args.ckpt.load_enable:
        used["ckpt.path"] = Path(args.ckpt.path)
    return used


def output_folders(args: SimpleNamespace) -> dict[str, Path]:
    """`checkpoint_folders` and that of the group log."""
    logs = {"gpm.log_groups": Path(args.gpm.log_groups)} if args.gpm.log_groups else {}
    return checkpoint_folders(args) | logs


def value(args: SimpleNamespace, flag: str) -> Any:
    """The value of a flag, given without its dashes, in nested arguments."""
    return attrgetter(flag)(args)


def _set(args: SimpleNamespace, flag: str, new: str) -> None:
    group, _, name = flag.partition(".")
    setattr(getattr(args, group), name, new)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _absolute_model(path: str, flag: str) -> str:
    """An existing path made absolute; a name of the Hub as it is. Raises ValueError for a path that is not there."""
    if os.path.exists(os.path.expanduser(path)):
        return _absolute(path)
    if path.startswith(LOCAL):
        raise ValueError(f"--{flag} {path} does not exist: correct the path")
    return path


def _absolute_dataset(given: str) -> str:
    path, at, folder = (part.strip() for part in given.partition("@"))
    local = path.startswith(LOCAL) or os.path.exists(path)
    return (_absolute(path) if local else path) + at + folder


def _check_apart(args: SimpleNamespace) -> None:
    """Raise ValueError where an output is an input, lies in one, or (of a checkpoint's folder) has one in it."""
    for out_flag, output in _outputs(args):
        for in_flag, paths in local_inputs(args).items():
            for given in paths:
                source = given.resolve()
                if output == source or source in output.parents:
                    where = "is" if output == source else "is inside"
                elif out_flag in CHECKPOINTS and output in source.parents:
                    where = "contains"
                else:
                    continue
                raise ValueError(
                    f"--{out_flag} {output} {where} --{in_flag} {given}, which the run only reads: name another folder"
                )


def _outputs(args: SimpleNamespace) -> Iterator[tuple[str, Path]]:
    for flag in (*CHECKPOINTS, *LOGS):
        if path := value(args, flag):
            yield flag, Path(path).resolve()
