"""Rewrites a checkpoint's safetensors one file at a time: no model is built, at most one file is in memory.

A `Plan` says for every tensor of the new checkpoint which file it goes to, and which rows of which old tensors it is
made of. A conversion edits the plan, which holds names only; then `write_shards` does the work.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from openrlhf_gpm.checkpoints.tensors import INDEX, MISSING, Shapes, tensor_files, tensor_header
from openrlhf_gpm.files import read_object


@dataclass(frozen=True)
class Rows:
    """Rows start to stop (not included; None: to the end) of a tensor in a file of the old checkpoint."""

    file: str
    tensor: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """Which file a new tensor goes to, and what it holds: rows of old tensors stacked, or else `value`."""

    file: str
    parts: tuple[Rows, ...] = ()
    value: Tensor | None = None


Plan = dict[str, Place]
Progress = Callable[[list[str]], Iterable[str]]


def read_plan(path: Path) -> tuple[Plan, Shapes]:
    """The plan that changes nothing, and every tensor's shape.

    Raises ValueError if a file is missing or damaged, or is not what the index says.
    """
    plan: Plan = {}
    shapes: Shapes = {}
    for file in tensor_files(path):
        for name, shape in tensor_header(file).items():
            if name in plan:
                raise ValueError(f"{path}: {plan[name].file} and {file.name} both hold {name}: save it again")
            plan[name] = Place(file.name, (Rows(file.name, name),))
            shapes[name] = shape
    if (path / INDEX).exists():
        for name, shard in read_object(path / INDEX, MISSING)["weight_map"].items():
            if name not in plan or plan[name].file != shard:
                raise ValueError(
                    f"{path / INDEX} says that {name} is in {shard}, where it is not: copy or save it again"
                )
    return plan, shapes


def rename(plan: Plan, old: str, new: str) -> None:
    """Rename a tensor."""
    plan[new] = plan.pop(old)


def stack(plan: Plan, top: str, bottom: str) -> None:
    """Append the rows of `bottom` to `top`, in the file of `top`; `bottom` is removed."""
    plan[top] = Place(plan[top].file, plan[top].parts + plan.pop(bottom).parts)


def split(plan: Plan, top: str, rows: int, bottom: str, file: str) -> None:
    """Undo `stack`: `top` keeps its first `rows` rows, the others become `bottom`, in `file`."""
    (part,) = plan[top].parts
    plan[top] = Place(plan[top].file, (Rows(part.file, part.tensor, 0, rows),))
    plan[bottom] = Place(file, (Rows(part.file, part.tensor, rows),))


def read_place(path: Path, place: Place) -> Tensor:
    """The tensor at a place, made from the old checkpoint at `path`."""
    if place.value is not None:
        return place.value
    parts = []
    for rows in place.parts:
        with safe_open(path / rows.file, framework="pt") as tensors:
            parts.append(tensors.get_slice(rows.tensor)[rows.start : rows.stop])
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def write_shards(source: Path, target: Path, plan: Plan, progress: Progress = iter) -> None:
    """Write the safetensors files of `plan`, and their index where `source` has one, into the directory `target`.

    A file in which nothing changes is copied byte for byte. `progress` wraps the list of files.
    """
    files = sorted({place.file for place in plan.values()})
    for file in progress(files):
        places = {name: place for name, place in plan.items() if place.file == file}
        unchanged = all(place.parts == (Rows(file, name),) for name, place in places.items())
        if unchanged and (source / file).exists() and len(places) == len(tensor_header(source / file)):
            shutil.copyfile(source / file, target / file)
        else:
            tensors = {name: read_place(source, place) for name, place in places.items()}
            save_file(tensors, target / file, metadata=_metadata(source / file))
            del tensors
    if (source / INDEX).exists():
        index = read_object(source / INDEX, MISSING)
        index["weight_map"] = {name: plan[name].file for name in sorted(plan)}
        before, after = _totals(tensor_files(source)), _totals([target / file for file in files])
        for key in set(before) & set(index.get("metadata") or {}):
            index["metadata"][key] += after[key] - before[key]
        (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _metadata(file: Path) -> dict[str, str]:
    """A file's metadata; transformers does not read a file without "format"."""
    if not file.exists():
        return {"format": "pt"}
    with safe_open(file, framework="pt") as tensors:
        return {"format": "pt"} | (tensors.metadata() or {})


def _totals(files: list[Path]) -> dict[str, int]:
    """Bytes and numbers in all tensors of the files, under the names that an index uses."""
    totals = {"total_size": 0, "total_parameters": 0}
    for file in files:
        with open(file, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                totals["total_size"] += tensor["data_offsets"][1] - tensor["data_offsets"][0]
                totals["total_parameters"] += prod(tensor["shape"])
    return totals
