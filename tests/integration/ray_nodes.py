"""Private Ray clusters of several nodes on one machine; each node is a raylet with resources of its own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import pytest

START = ("ray", "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000")
OUTPUT = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


class Cluster:
    """Nodes that were started here; the first is the head."""

    def __init__(self, env: dict[str, str]) -> None:
        self.folder = tempfile.mkdtemp(prefix="gpmnodes")  # a socket path must be short
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{sock.getsockname()[1]}"
        self.env = env | {"RAY_ADDRESS": self.address}
        self.nodes: list[subprocess.Popen[str]] = []

    def head(self, *flags: str) -> None:
        port = self.address.rpartition(":")[2]
        self.start("--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false", *flags)

    def join(self, *flags: str, within: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        """within: a command in front of `ray start`, which gives the node a disk or a network of its own."""
        self.start(f"--address={self.address}", *flags, within=within, env=env)

    def start(self, *flags: str, within: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        command = [*within, *START, *flags]
        node = subprocess.Popen(command, env=self.env | (env or {}), start_new_session=True, **OUTPUT)
        self.nodes.append(node)
        if not any("Ray runtime started" in line for line in node.stdout):
            pytest.fail(f"ray start exited with {node.wait()}")

    def processes(self, node: subprocess.Popen[str]) -> list[psutil.Process]:
        """The raylet of a node, its workers, and all else that `ray start` started."""
        top = psutil.Process(node.pid)
        return [top, *top.children(recursive=True)]

    def actors(self, title: str) -> list[psutil.Process]:
        """Processes of the actors whose class has this name."""
        everything = [each for node in self.nodes for each in self.processes(node)]
        return [each for each in everything if title in " ".join(each.cmdline())]

    def stop(self) -> None:
        for node in reversed(self.nodes):
            os.killpg(node.pid, signal.SIGTERM)
            node.communicate(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, stopped at the end."""
    try:
        yield cluster
    finally:
        cluster.stop()
