"""The quickstart's environment and its private Ray cluster, which leaves any other cluster of the machine alone."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ENV_FILE = Path(__file__).resolve().parents[1] / "cpu" / "env.sh"
GPUS = 3  # logical ones, only numbers to Ray: the policy, the reward model, the vLLM engine
START_LIMIT = 90  # seconds


def cpu_environment() -> dict[str, str]:
    """This process's environment after examples/cpu/env.sh, with this interpreter's programs first in PATH."""
    script = 'set -e; . "$0"; env -0'
    text = subprocess.run(["bash", "-c", script, str(ENV_FILE)], check=True, capture_output=True).stdout.decode()
    env = dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env["OMP_NUM_THREADS"] = "1"  # several processes share the cores
    env["PYTHONUNBUFFERED"] = "1"  # progress is read from the logs
    env.pop("RAY_ADDRESS", None)
    return env


def single_process(env: dict[str, str]) -> dict[str, str]:
    """`env` for a DeepSpeed job of one process without a launcher."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return env | rendezvous | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RayCluster:
    """Starts with the first use, ends with `stop`."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self.env, self.log = env, log
        self.head: subprocess.Popen[bytes] | None = None
        self.folder = ""
        self.address = ""

    def environment(self) -> dict[str, str]:
        """The environment for a job on this cluster, which is started if it is not up. Raises RuntimeError."""
        if self.head is None:
            self._start()
        return self.env | {"RAY_ADDRESS": self.address}

    def _start(self) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.folder = tempfile.mkdtemp(prefix="gpm")  # Ray's socket paths below it must stay short
        command = [
            *("ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"),
            *(f"--num-gpus={GPUS}", "--num-cpus=8", "--include-dashboard=false", "--disable-usage-stats"),
            *(f"--temp-dir={self.folder}", "--object-store-memory=200000000"),
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self.head = subprocess.Popen(
                command, env=self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + START_LIMIT
        while "Ray runtime started" not in self.log.read_text(errors="replace"):
            if self.head.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Ray did not start, see {self.log}")
            time.sleep(0.25)

    def stop(self) -> None:
        """End this cluster's processes and no others."""
        if self.head is None:
            return
        try:
            family = psutil.Process(self.head.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self.head.send_signal(signal.SIGTERM)  # `ray start --block` then ends what it started
        try:
            self.head.wait(20)
        except subprocess.TimeoutExpired:
            self.head.kill()
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            process.kill()
        self.head = None
        shutil.rmtree(self.folder, ignore_errors=True)
