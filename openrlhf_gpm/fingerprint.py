"""What tells one model, one file or one set of flags from another. Standard library only."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLE = 1 << 16
MODEL = {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt", ".py"}
"""Endings of the files that a model and its tokenizer are loaded from."""

PLACES = 16
"""A sample of a large file: so many places, each of SAMPLE bytes."""


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names, sizes and samples; of a model's folder, what it is loaded from.

    A file of a folder is read whole up to 1 MB, else at PLACES places, first and last included: enough to tell two
    trained models apart, and quick for 16 GB. Where a folder lies, and when its files were written, does not count.
    """
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    model = (path / "config.json").exists() or (path / "adapter_config.json").exists()
    files = (path.iterdir() if model else path.rglob("*")) if path.is_dir() else ()
    for file in sorted(file for file in files if file.is_file() and (not model or file.suffix in MODEL)):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        last = max(0, size - SAMPLE)
        places = (
            range(0, size, SAMPLE) if size <= PLACES * SAMPLE else [i * last // (PLACES - 1) for i in range(PLACES)]
        )
        with file.open("rb") as content:
            for start in places:
                content.seek(start)
                digest.update(content.read(SAMPLE))
    return digest.hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two mappings, one text per name; a value that is a fingerprint is not shown."""
    texts = []
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name), new.get(name)
        if before != now:
            hidden = any(isinstance(value, str) and len(value) == 64 for value in (before, now))
            texts.append(f"{name} has changed" if hidden else f"{name} was {before}, is {now}")
    return texts
