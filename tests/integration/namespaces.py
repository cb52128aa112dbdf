"""Two network namespaces as two machines: each has its own address, host name, working directory; they share a disk.

The programs of a cluster's scheduler are stood in for by ones that really start the processes in those namespaces.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("node-1", "node-2")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
# $0: host name, $1: a folder with hosts and resolv.conf, $2: working directory; then the command.
ENTER = 'hostname "$0" && for f in hosts resolv.conf; do mount --bind "$1/$f" /etc/$f || exit 1; done'
ENTER += ' && cd "$2" && shift 2 && exec "$@"'
SRUN = """#!/usr/bin/env bash
for word; do
  case $word in --nodelist=*) node=${{word#*=}} ;; --*) ;; *) break ;; esac
  shift
done
case $node in {cases} esac
"""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Machines:
    """`within(i)` in front of a command runs it on machine i; `bin` holds srun and scontrol for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spaces = folder, [f"gpm{os.getpid()}-{i}" for i in (1, 2)]
        lines = ["127.0.0.1 localhost", *map(" ".join, zip(ADDRESSES, NAMES, strict=True))]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        # gRPC asks a name server too; where nobody listens, the answer comes at once.
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        for name in (*NAMES, "bin"):
            (folder / name).mkdir()
        cases = (f'{name}) exec {shlex.join(self.within(i))} "$@" ;;' for i, name in enumerate(NAMES))
        self.program("srun", SRUN.format(cases=" ".join(cases)))
        self.program("scontrol", f"#!/bin/sh\nprintf '%s\\n' {' '.join(NAMES)}\n")

    def program(self, name: str, text: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(text)
        file.chmod(0o755)

    def within(self, i: int, folder: Path | None = None) -> list[str]:
        """folder: the working directory, by default the machine's own."""
        entered = ["ip", "netns", "exec", self.spaces[i], "unshare", "--uts", "--mount", "bash", "-c", ENTER]
        return [*entered, NAMES[i], str(self.folder), str(folder or self.folder / NAMES[i])]

    def connect(self) -> None:
        for space in self.spaces:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        one, two = self.spaces
        ip("link", "add", "net0", "netns", one, "type", "veth", "peer", "name", "net0", "netns", two)
        for space, own, other in zip(self.spaces, ADDRESSES, reversed(ADDRESSES), strict=True):
            ip("-n", space, "addr", "add", f"{own}/24", "dev", "net0")
            ip("-n", space, "link", "set", "net0", "up")
            ip("-n", space, "route", "add", "default", "via", other)  # vLLM asks the routes for its own address

    def disconnect(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False)


def allowed() -> bool:
    """Whether this process may make namespaces: as root, on most machines."""
    probe = f"gpm{os.getpid()}-probe"
    try:
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        ip("netns", "delete", probe)
    return made


needs_namespaces = pytest.mark.skipif(not allowed(), reason="no network namespaces: run as root")


@contextmanager
def machines(folder: Path) -> Iterator[Machines]:
    """Connected, and gone at the end."""
    both = Machines(folder)
    try:
        both.connect()
        yield both
    finally:
        both.disconnect()


def environment(env: dict[str, str], both: Machines) -> dict[str, str]:
    """For programs that a scheduler would start: its own, and the stack's, are on the path."""
    return env | {"PATH": f"{both.folder / 'bin'}:{Path(sys.executable).parent}:{env['PATH']}"}
