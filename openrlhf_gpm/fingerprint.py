"""What a file or a model is known by, wherever its folder lies. Standard library only."""

import hashlib
from pathlib import Path

SAMPLE = 1 << 16
"""Bytes of each sample of a file."""


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names, sizes and samples (of a model's folder: config and weights only).

    A sample is the first, the middle and the last `SAMPLE` bytes of a file: enough to tell two trained models apart,
    and quick for 16 GB.
    """
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    model = [path / "config.json", *sorted(path.glob("*.safetensors")), *sorted(path.glob("*.bin"))]
    files = model if model[0].exists() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        with file.open("rb") as content:
            for start in (0, size // 2, max(0, size - SAMPLE)):
                content.seek(start)
                digest.update(content.read(SAMPLE))
    return digest.hexdigest()
