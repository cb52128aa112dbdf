"""Scores on disk as they are made: a run that was stopped continues, and one that is repeated scores nothing again.

FILE.jsonl holds a line for each group, {"id", "scores": [K][K]}, null for a score that is not finite, and appears when
it is complete; until then FILE.jsonl.partial does. FILE.jsonl.key says what the scores belong to.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gpm.data import PreferenceGroup


def scored(
    open_model: Callable[[], Any],
    groups: Sequence[PreferenceGroup],
    file: Path,
    key: dict[str, Any],
    on_group: Callable[[int], object] = lambda _: None,
) -> list[NDArray[np.float64]]:
    """The scores (K, K) of every group, NaN where not finite: those in `file` if they belong to `key`, else new ones.

    `open_model` is called when there is something to score, `on_group` with the number of groups that are ready,
    first with what an earlier run left.
    """
    partial, key_file = file.with_name(f"{file.name}.partial"), file.with_name(f"{file.name}.key")
    known = key_file.exists() and _loads(key_file.read_text(encoding="utf-8")) == key
    lines = _whole_lines(file if file.exists() else partial) if known else []
    if not (known and file.exists() and len(lines) == len(groups)):
        lines = lines[: len(groups)]
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        write(key_file, json.dumps(key))
        write(partial, "".join(line + "\n" for line in lines))
        on_group(len(lines))
        with open(partial, "a", encoding="utf-8") as out:
            rest = islice(groups, len(lines), None)
            for group, scores in zip(groups[len(lines) :], open_model().score_all(rest), strict=True):
                line = {"id": group.id, "scores": _nulls(scores.tolist())}
                lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False, default=str))
                out.write(lines[-1] + "\n")
                out.flush()
                on_group(1)
        os.replace(partial, file)
    else:
        on_group(len(lines))
    return [np.array(json.loads(line)["scores"], dtype=np.float64) for line in lines]


def data_key(groups: Iterable[PreferenceGroup]) -> str:
    """Fingerprint of prompts and responses, in order."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(json.dumps([group.prompt, group.responses]).encode() + b"\n")
    return digest.hexdigest()


def model_key(source: str) -> Any:
    """Fingerprint of a model's files: names, sizes, times; its name for a built-in model."""
    if not Path(source).is_dir():
        return source
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def write(file: Path, content: str | bytes) -> None:
    """Write under a temporary name, then rename."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, file)


def _whole_lines(file: Path) -> list[str]:
    """Lines that are complete; a killed run may leave half of one."""
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="\n", errors="replace") as lines:
        return [line[:-1] for line in lines if line.endswith("\n")]


def _nulls(matrix: list[list[float]]) -> list[list[float | None]]:
    return [[value if np.isfinite(value) else None for value in row] for row in matrix]


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
