"""A full disk is named before a checkpoint is begun, and after one that failed nevertheless."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIMIZER = 12
"""Bytes per trained weight that a checkpoint adds to the weights: Adam's two averages and the fp32 weights."""

FULL = 16 * 2**20
"""With fewer bytes free, a write that failed is taken to have failed for want of space."""


@contextmanager
def room(folder: Path, needed: int, what: str, remedy: str, ask: bool = True) -> Iterator[None]:
    """Raise OSError (ENOSPC), whose one line names the folder, where what is written in the block does not fit.

    needed: bytes that `what` takes. ask: before the block, so that nothing is begun which cannot end. When the block
    fails the disk is asked in any case: torch says "iostream error" then, without a path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if ask and free < needed:
        raise _full(folder, f"{free:,} bytes free, and {what} needs {needed:,}", remedy)
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(folder).free
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or free < FULL:
            said = f"{what}, of {needed:,} bytes, could not be written, and {free:,} bytes are free"
            raise _full(folder, said, remedy) from error
        raise


def _full(folder: Path, said: str, remedy: str) -> OSError:
    return OSError(errno.ENOSPC, f"{folder}: the disk is full ({said}): make space; {remedy}")


def weights(model: Any) -> tuple[int, int]:
    """(number of weights that are trained, bytes of all weights), those that ZeRO-3 keeps elsewhere included."""
    parts = [(getattr(p, "ds_numel", p.numel()), p.element_size(), p.requires_grad) for p in model.parameters()]
    return sum(count for count, _, trained in parts if trained), sum(count * size for count, size, _ in parts)
