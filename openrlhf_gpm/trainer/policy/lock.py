"""A lock on a folder that dies with the process that holds it, however it dies. Standard library only."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from pathlib import Path

logger = logging.getLogger(__name__)

_locks: dict[Path, int] = {}
"""Descriptors of open files whose locks this process holds until it ends."""


def lock(folder: Path, name: str) -> None:
    """Hold FOLDER/.run.lock until this process ends. Raises ValueError while another process holds it.

    name: the flag that gave the folder. The lock is seen by all processes of a host; whether by other hosts, the file
    system decides.
    """
    if folder in _locks:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / ".run.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"{name} {folder} cannot be written to: {error.strerror}; name another folder") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(file, 200).decode().strip() or "its process is starting"
        os.close(file)
        raise ValueError(
            f"{name} {folder} belongs to a run that is alive ({owner}): wait for it, stop it, or name another folder"
        ) from None
    except OSError as error:
        logger.warning(f"{name} {folder}: this file system has no locks ({error.strerror}); start no second run there")
    os.ftruncate(file, 0)
    os.write(file, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    _locks[folder] = file
