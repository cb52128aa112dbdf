"""Locks that die with the process that holds them, however it dies. Standard library only."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from pathlib import Path

logger = logging.getLogger(__name__)

_held: dict[Path, int] = {}
"""Descriptors of the lock files that this process holds."""


def lock(file: Path, name: str) -> None:
    """Hold the lock FILE until `release`, or until this process ends. Raises ValueError while another process has it.

    name: what the lock protects, in the words of the user, such as a flag and its value. All processes of a host see
    the lock; whether other hosts do, the file system decides.
    """
    if file in _held:
        return
    descriptor = _open(file, name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode().strip() or "its process is starting"
        os.close(descriptor)
        raise ValueError(
            f"{name} is in use by another run ({owner}): wait for it, stop it, or name another place"
        ) from None
    except OSError as error:
        logger.warning(f"{name}: this file system has no locks ({error.strerror}); start no second run there")
    if not _is(descriptor, file):  # the run that held it removed the file after we opened it
        os.close(descriptor)
        lock(file, name)
        return
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    _held[file] = descriptor


def _open(file: Path, name: str) -> int:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"{name} cannot be written to: {error.strerror}; name another place") from error


def _is(descriptor: int, file: Path) -> bool:
    """Whether an open descriptor is that of the file now at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def release(file: Path) -> None:
    """Give a lock back and remove its file."""
    file.unlink(missing_ok=True)
    os.close(_held.pop(file))
