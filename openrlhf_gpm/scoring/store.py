"""Scores on disk as they are made: a run that was stopped continues, and one that is repeated scores nothing again.

FILE holds one line per group and appears when it is complete; until then it is FILE.partial. A key file says what the
lines belong to: which model, which data, which settings.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gpm.data import PreferenceGroup
from openrlhf_gpm.files import growing, write
from openrlhf_gpm.lock import lock, release


class ScoreFile:
    """A JSONL file that one process at a time lets grow in FILE.partial; `key_file` holds the `key` of its lines."""

    def __init__(self, file: Path, key_file: Path, key: Any) -> None:
        self.file = file
        self.partial = file.with_name(f"{file.name}.partial")
        self.key_file = key_file
        self.key = key

    def belongs(self) -> bool:
        """Whether what is on disk was made with the same key."""
        if not self.key_file.exists():
            return False
        try:
            return bool(json.loads(self.key_file.read_text(encoding="utf-8")) == self.key)
        except json.JSONDecodeError:  # damaged: nobody knows what the lines are
            return False

    def resume(self) -> int:
        """Make FILE.partial ready for `append` -> the number of lines in it; 0, starting over, for another key.

        Raises ValueError while another process writes the file.
        """
        lock(self._lock, str(self.file))
        if self.belongs() and self.partial.exists():
            with open(self.partial, "rb+") as file:
                complete = [len(line) for line in file if line.endswith(b"\n")]  # a killed run may leave half a line
                file.truncate(sum(complete))
            return len(complete)
        self.partial.unlink(missing_ok=True)
        write(self.key_file, json.dumps(self.key))
        return 0

    def append(self, lines: Iterable[str], on_line: Callable[[int], object] = lambda _: None) -> None:
        """Add lines as they come, then put FILE in place. `on_line` is called with 1 after each."""
        try:
            with growing(self.partial, self.file) as out:
                for line in lines:
                    out.write(line + "\n")
                    out.flush()
                    on_line(1)
        finally:
            release(self._lock)

    @property
    def _lock(self) -> Path:
        return self.file.with_name(f".{self.file.name}.lock")

    def lines(self) -> list[str]:
        """Those of FILE, once it is complete."""
        return self.file.read_text(encoding="utf-8").split("\n")[:-1]  # only JSON's own line ends


def scored(
    open_model: Callable[[], Any],
    groups: Sequence[PreferenceGroup],
    file: Path,
    key: dict[str, Any],
    on_group: Callable[[int], object] = lambda _: None,
) -> list[NDArray[np.float64]]:
    """The scores (K, K) of every group, NaN where not finite: those in `file` if they belong to `key`, else new ones.

    A line of `file` is {"id", "scores": [K][K]}, null for a score that is not finite; FILE.key holds the key.
    `open_model` is called when there is something to score, `on_group` with the number of groups that are ready,
    first with what an earlier run left.
    """
    store = ScoreFile(file, file.with_name(f"{file.name}.key"), key)
    if file.exists() and not (store.belongs() and len(store.lines()) == len(groups)):
        file.unlink()
    if file.exists():
        on_group(len(groups))
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        done = store.resume()
        on_group(done)
        matrices = open_model().score_all(islice(groups, done, None)) if done < len(groups) else []
        lines = (_line(group, scores) for group, scores in zip(groups[done:], matrices, strict=True))
        store.append(lines, on_group)
    return [np.array(json.loads(line)["scores"], dtype=np.float64) for line in store.lines()]


def _line(group: PreferenceGroup, scores: Any) -> str:
    rows = [[value if np.isfinite(value) else None for value in row] for row in scores.tolist()]
    return json.dumps({"id": group.id, "scores": rows}, ensure_ascii=False, allow_nan=False, default=str)


def data_key(groups: Iterable[PreferenceGroup]) -> str:
    """Fingerprint of prompts and responses, in order."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(json.dumps([group.prompt, group.responses]).encode() + b"\n")
    return digest.hexdigest()


def file_key(file: Path) -> str:
    """Fingerprint of a file's content."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def model_key(source: str | Path) -> Any:
    """Fingerprint of a model's files: names, sizes, times; of a built-in model its name."""
    if not Path(source).is_dir():
        return str(source)
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
