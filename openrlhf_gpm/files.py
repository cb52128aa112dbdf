"""Files and directories that appear whole or not at all, and JSON whose errors are one line. Standard library only."""

import ctypes
import errno
import fcntl
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

LIBC: Any = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name to write a file to; the file becomes `path` when the block ends, and on an error it disappears.

    A symbolic link stays, and what it names is written; so in all functions here.
    """
    path = path.resolve()
    new = _new(path)
    try:
        with naming(path):
            yield new
            os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: a reader sees the old content or the new."""
    with temporary(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(*paths: Path) -> Iterator[list[TextIO]]:
    """Text files to write to; they replace `paths`, one by one, when the block ends; on an error none does."""
    paths = tuple(path.resolve() for path in paths)
    new = [_new(path) for path in paths]
    try:
        with naming(*paths), ExitStack() as stack:
            yield [stack.enter_context(open(path, "w", encoding="utf-8", newline="\n")) for path in new]
        for source, path in zip(new, paths, strict=True):
            os.replace(source, path)
    finally:
        for source in new:
            source.unlink(missing_ok=True)


@contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """Add to errors of the system what was being written; a full disk names no file by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = ", ".join(map(str, paths))
        raise


@contextmanager
def growing(partial: Path, path: Path) -> Iterator[TextIO]:
    """`partial`, opened to append; it becomes `path` when the block ends, and on an error it stays to be continued."""
    with naming(partial), open(partial, "a", encoding="utf-8", newline="\n") as file:
        yield file
    os.replace(partial, path)


@contextmanager
def complete_directory(path: Path) -> Iterator[Path]:
    """A new directory to write to; it takes the place of `path` when the block ends, and on an error it disappears.

    What earlier blocks left whose process was killed is removed first.
    """
    path = path.resolve()
    new, owner = _own_directory(path)
    try:
        yield new
        replace_directory(new, path)
    finally:
        os.close(owner)
        shutil.rmtree(new, ignore_errors=True)


def replace_directory(new: Path, path: Path) -> None:
    """Give the directory `new` the name `path`, at no moment of which there is none; what was there before is removed.

    Where the system cannot exchange two names (not Linux, some network file systems), a process that is killed between
    two renames leaves the old directory as `.NAME.old-...`.
    """
    path = path.resolve()
    if not path.exists():
        new.rename(path)
    elif _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = _unique(path, "old")
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def replace_model(new: Path, path: Path) -> None:
    """Move a model's files from `new` into `path`, which may hold an older model, and checkpoints in subfolders.

    config.json goes first and comes last: without it the folder is not a model, so a folder that has it is complete.
    """
    (path / "config.json").unlink(missing_ok=True)
    for pattern in ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json"):
        for old in path.glob(pattern):
            old.unlink()
    for file in sorted(new.iterdir(), key=lambda file: file.name == "config.json"):
        if file.is_dir():
            shutil.rmtree(path / file.name, ignore_errors=True)
        os.replace(file, path / file.name)
    new.rmdir()


def read_object(path: Path, missing: str, damaged: str = "copy or save it again") -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError in one line that ends with the remedy `missing` or `damaged`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {missing}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)}): {damaged}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object: {damaged}")
    return value


def one_line(error: Exception) -> str:
    """An error's text, at most 200 characters of it, without line breaks."""
    return " ".join(str(error).split())[:200]


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two existing paths in one step. False where the system has no such step."""
    if not hasattr(LIBC, "renameat2"):
        return False
    if LIBC.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _own_directory(path: Path) -> tuple[Path, int]:
    """(a new directory next to `path`, the descriptor whose lock says that its process lives).

    The parent is locked meanwhile, so that nobody takes a directory that has no lock yet for one of a dead process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        has_locks = _lock(parent, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{glob.escape(path.name)}.new-*/") if has_locks else ():
            owner = os.open(left, os.O_RDONLY)
            try:
                if _lock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(owner)
        new = _new(path)
        new.mkdir()
        owner = os.open(new, os.O_RDONLY)
        _lock(owner, fcntl.LOCK_EX)
        return new, owner
    finally:
        os.close(parent)


def _lock(descriptor: int, how: int) -> bool:
    """Whether the lock was had; not where another process has it, nor on a file system without locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _new(path: Path) -> Path:
    return _unique(path, "new")


def _unique(path: Path, what: str) -> Path:
    """A name next to `path` that no other process uses, nor one that died (process ids repeat in containers)."""
    return path.with_name(f".{path.name}.{what}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
