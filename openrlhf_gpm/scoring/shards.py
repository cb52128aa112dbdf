"""Shards: neighbouring groups that are scored together. They depend on the data and --batch_tokens alone, so that one
process and a cluster make the same batches, and a run that goes on makes those of the run that was stopped.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

from openrlhf_gpm.files import write
from openrlhf_gpm.samples.encoded import Encoded
from openrlhf_gpm.scoring.options import is_full

T = TypeVar("T")


class Shard(NamedTuple):
    """The groups start ... stop - 1 of a file."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """The number of groups."""
        return self.stop - self.start


class Cutter:
    """Cuts groups, given one by one, into shards. Each is what `GPM.score_groups` would batch together anyway."""

    def __init__(self, batch_tokens: int) -> None:
        self._batch_tokens = batch_tokens
        self._cuts = array("Q", [0])
        self._groups = self._tokens = 0

    def add(self, samples: Sequence[Encoded]) -> None:
        """Add the next group."""
        self._groups += 1
        self._tokens += sum(len(sample.input_ids) for sample in samples)
        if is_full(self._tokens, self._batch_tokens):
            self._cuts.append(self._groups)
            self._tokens = 0

    def shards(self) -> list[Shard]:
        """The shards of all groups so far, in order."""
        last = [self._groups] if self._groups > self._cuts[-1] else []
        return [Shard(*cut) for cut in pairwise([*self._cuts, *last])]


class Waiting:
    """Shards that are done before their turn: lines in files START-STOP.jsonl of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, shard: Shard, lines: Sequence[str]) -> None:
        """Keep a shard's lines; a file is there whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        write(self._file(shard), "".join(f"{line}\n" for line in lines))

    def lines(self, shard: Shard) -> list[str] | None:
        """A shard's lines; None where they are not here, or not whole because the machine went down."""
        try:
            lines = self._file(shard).read_text(encoding="utf-8").split("\n")[:-1]
            whole = len(lines) == shard.size and all(isinstance(json.loads(line), dict) for line in lines)
        except (FileNotFoundError, ValueError):
            return None
        return lines if whole else None

    def drop(self, shard: Shard) -> None:
        """Forget a shard."""
        self._file(shard).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all, those of other cuts and half-written ones too; what else is in the folder stays."""
        for pattern in ("*-*.jsonl", ".*-*.jsonl.new-*"):
            for file in self.folder.glob(pattern):
                file.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.start}-{shard.stop}.jsonl"


def in_order(
    shards: Iterable[Shard],
    done: int,
    waiting: Waiting,
    results: Iterator[tuple[Shard, list[str]]],
    on_groups: Callable[[int], object],
) -> Iterator[str]:
    """The lines of all groups but the first `done`, in order.

    results: those shards that `missing` names, in any order; what comes before its turn is kept in `waiting`.
    on_groups: called with the number of groups of a result once its lines are kept: taken by the caller, or waiting.
    """
    for shard in shards:
        if shard.stop <= done:
            continue
        lines, scored = waiting.lines(shard), 0
        while lines is None:
            which, found = next(results)
            new = which.size - max(0, done - which.start)
            if which == shard:
                lines, scored = found, new
            else:
                waiting.put(which, found)
                on_groups(new)
        yield from islice(lines, max(0, done - shard.start), None)
        waiting.drop(shard)
        on_groups(scored)


def missing(shards: Iterable[Shard], done: int, waiting: Waiting) -> list[Shard]:
    """The shards that have to be scored where the first `done` groups, and what is `waiting`, need not be."""
    return [shard for shard in shards if shard.stop > done and waiting.lines(shard) is None]


def parts(groups: Iterable[T], shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[T]]]:
    """Each shard, in ascending order, with its groups; `groups` is read once, and no further than asked for."""
    rest, at = iter(groups), 0
    for shard in shards:
        yield shard, list(islice(rest, shard.start - at, shard.stop - at))
        at = shard.stop
