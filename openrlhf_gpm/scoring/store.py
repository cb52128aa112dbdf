"""Scores on disk as they are made: a run that was stopped continues, and one that is repeated scores nothing again.

FILE holds one line per group and appears when it is complete; until then it is FILE.partial. A key file says what the
lines belong to: which model, which data, which settings.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gpm import __version__
from openrlhf_gpm.data import PreferenceGroup
from openrlhf_gpm.files import growing, write
from openrlhf_gpm.fingerprint import changes, fingerprint
from openrlhf_gpm.json_lines import JsonLines


class ScoreFile:
    """A JSONL file that one process at a time lets grow in FILE.partial; `key_file` holds the `key` of its lines.

    key: what must be the same for lines to be continued, by the words of the user.
    """

    def __init__(self, file: Path, key_file: Path, key: Mapping[str, Any]) -> None:
        self.file = file
        self.partial = file.with_name(f"{file.name}.partial")
        self.key_file = key_file
        self.key = dict(key)

    def belongs(self) -> bool:
        """Whether what is on disk was made with the same key."""
        return self._stored_key() == self.key

    def resume(self) -> int:
        """Make FILE.partial ready for `append` -> the number of lines in it.

        Raises ValueError for a FILE.partial of another key, with the difference, or of no key, so not of ours.
        """
        if self.partial.exists():
            stored = self._stored_key()
            if stored is None:
                raise ValueError(
                    f"{self.partial} is in the way, and nothing says that it is part of {self.file.name} (there is no "
                    f"{self.key_file.name}): move it away, or name another output"
                )
            if different := changes(stored, self.key):
                raise ValueError(
                    f"{self.partial} is of another run: {'; '.join(different)}. Repeat that command to finish it, or "
                    "delete the file to start over"
                )
            return self._cut()
        write(self.key_file, json.dumps(self.key))
        return 0

    def discard(self) -> None:
        """Remove what another key left, the key first: what is killed in between is nobody's."""
        self.file.unlink(missing_ok=True)
        if self._stored_key() is not None or self.key_file.exists():
            self.partial.unlink(missing_ok=True)

    def append(self, lines: Iterable[str], total: int, on_line: Callable[[int], object] = lambda _: None) -> None:
        """Add lines as they come, then put FILE in place. `on_line` is called with 1 after each.

        Raises ValueError if FILE would not have `total` lines in all; FILE.partial then stays.
        """
        with growing(self.partial, self.file) as out:
            for line in lines:
                out.write(line + "\n")
                out.flush()
                on_line(1)
            with open(self.partial, "rb") as file:
                count = sum(1 for _ in file)
            if count != total:
                raise ValueError(f"{self.partial} has {count} lines instead of {total}: delete it and start over")

    def lines(self) -> JsonLines:
        """The values of the lines of FILE, once it is complete."""
        return JsonLines(open(self.file, "rb"))

    def _stored_key(self) -> dict[str, Any] | None:
        """The key on disk; None where there is none that can be read."""
        try:
            key = json.loads(self.key_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return key if isinstance(key, dict) else None

    def _cut(self) -> int:
        """Cut FILE.partial before the first line that is not whole -> the number of lines."""
        count = end = 0
        with open(self.partial, "rb+") as file:
            for line in file:
                if not line.endswith(b"\n") or not _is_json(line):  # a killed run may leave half a line, or zeros
                    break
                count, end = count + 1, end + len(line)
            file.truncate(end)
        return count


class StoredScores(Sequence[Any]):
    """The scores (K, K) of every group in a file of `scored`, NaN where not finite, read when they are asked for."""

    def __init__(self, lines: JsonLines) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        found = self._lines[index]
        if isinstance(index, slice):
            return [np.array(line["scores"], dtype=np.float64) for line in found]
        return np.array(found["scores"], dtype=np.float64)


def scored(
    open_model: Callable[[], Any],
    groups: Sequence[PreferenceGroup],
    file: Path,
    key: Mapping[str, Any],
    on_group: Callable[[int], object] = lambda _: None,
) -> Sequence[NDArray[np.float64]]:
    """The scores (K, K) of every group, NaN where not finite: those in `file` if they belong to `key`, else new ones.

    A line of `file` is {"id", "scores": [K][K]}, null for a score that is not finite; FILE.key holds the key.
    `open_model` is called when there is something to score, `on_group` with the number of groups that are ready,
    first with what an earlier run left.
    """
    store = ScoreFile(file, file.with_name(f"{file.name}.key"), key)
    if not store.belongs() or (file.exists() and len(store.lines()) != len(groups)):
        store.discard()
    if file.exists():
        on_group(len(groups))
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        done = store.resume()
        on_group(done)
        matrices = open_model().score_all(islice(groups, done, None)) if done < len(groups) else []
        lines = (_line(group, scores) for group, scores in zip(islice(groups, done, None), matrices, strict=True))
        store.append(lines, len(groups), on_group)
    return StoredScores(store.lines())


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _line(group: PreferenceGroup, scores: Any) -> str:
    rows = [[value if np.isfinite(value) else None for value in row] for row in scores.tolist()]
    return json.dumps({"id": group.id, "scores": rows}, ensure_ascii=False, allow_nan=False, default=str)


def data_key(groups: Iterable[PreferenceGroup]) -> str:
    """Fingerprint of prompts and responses, in order."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(json.dumps([group.prompt, group.responses]).encode() + b"\n")
    return digest.hexdigest()


def model_key(source: str | Path, base: str | Path | None = None) -> dict[str, str]:
    """What a model's scores depend on: fingerprints of its files and of its base's, and the versions of the code.

    base: of a LoRA adapter. Of a built-in model, the name.
    """
    parts = {"--model": source} | ({"its base model": base} if base is not None else {})
    found = {name: fingerprint(Path(path)) if Path(path).is_dir() else str(path) for name, path in parts.items()}
    return found | {"openrlhf-gpm": __version__, "transformers": version("transformers")}
