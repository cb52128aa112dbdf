"""Where a command may write: never over or into what it reads, not to a device, and alone. Standard library only."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from openrlhf_gpm.lock import lock, release

Inputs = Iterable[tuple[str, str | os.PathLike[str]]]
"""What a command reads, by the words of the user: ("--model", path) ... Names that are no path are passed over."""

SYSTEM = ("/dev", "/proc", "/sys")
LINKS = 40  # hops of symbolic links, as in Linux


def check_output(path: str | os.PathLike[str], flag: str, inputs: Inputs) -> Path:
    """The path that an output has when its links are followed.

    Raises ValueError, which names the flag, for a device, for an output that is an input or lies inside one, and for a
    folder that contains an input.
    """
    for hop in _hops(Path(path)):
        if any(hop == system or hop.startswith(f"{system}/") for system in SYSTEM):
            raise ValueError(f"{flag} {path} is a device or a part of the system: give a file or folder of your own")
    output = Path(path).resolve()
    for name, given in inputs:
        source = Path(given).resolve()
        if not source.exists():
            continue
        same = output == source or (output.exists() and output.samefile(source))
        inside = source in output.parents
        contains = output.is_dir() and output in source.parents
        if same or inside or contains:
            where = "is" if same else "lies in" if inside else "contains"
            raise ValueError(f"{flag} {path} {where} {name} {given}, which is only read: give another name")
    return output


def _hops(path: Path) -> Iterator[str]:
    """A path, and where each symbolic link on the way to its end leads."""
    for _ in range(LINKS):
        here = os.path.abspath(path)
        yield here
        yield os.path.join(os.path.realpath(os.path.dirname(here)), os.path.basename(here))
        if not os.path.islink(here):
            return
        path = Path(os.path.dirname(here)) / os.readlink(here)


@contextmanager
def one_writer(*outputs: Path) -> Iterator[None]:
    """Hold a lock beside each output; it dies with this process. Raises ValueError while another run holds one."""
    held: list[Path] = []
    try:
        for output in outputs:
            file = lock_file(output)
            lock(file, str(output))
            held.append(file)
        yield
    finally:
        for file in held:
            release(file)


def lock_file(output: Path) -> Path:
    """The lock of an output, a file beside it."""
    return output.with_name(f".{output.name}.lock")
