"""Real servers, as processes of their own on free ports, and the offline scorer to compare them with."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import KEY, Served

from openrlhf_gpm.scoring.scorer import GPM


@pytest.fixture(scope="session")
def start(gpm_checkpoint: Path, tmp_path_factory) -> Iterator[Callable[..., Served]]:
    """Starts servers; all are stopped in the end."""
    folder = tmp_path_factory.mktemp("served")
    started: list[Served] = []

    def start(*flags: str, model: Path = gpm_checkpoint) -> Served:
        out, log = (folder / f"{len(started)}.{name}" for name in ("out", "log"))
        command = [sys.executable, "-m", "openrlhf_gpm.cli.main", "serve", "--model", str(model)]
        with out.open("w") as out_file, log.open("w") as log_file:
            process = subprocess.Popen(
                [*command, "--device", "cpu", "--port", "0", *flags],
                stdout=out_file,
                stderr=log_file,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        started.append(Served(process, out, log))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()


@pytest.fixture(scope="session")
def started(start, tmp_path_factory) -> tuple[Served, Served]:
    """Both servers that several tests share: they load at the same time."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}-old\n{KEY}\n")
    server = start("--group_size", "4", "--ui")
    limits = "--max_body_mb 1 --max_bodies_mb 3 --max_groups 4 --max_responses 5 --max_tokens 3000 --max_waiting 3"
    flags = f"{limits} --max_queue_tokens 3000 --deadline 1 --group_size 3 --ui --api-key-file"
    return server, start(*flags.split(), str(keys))


@pytest.fixture(scope="session")
def server(started) -> Served:
    """Groups of 4, default limits, no key."""
    started[0].wait_until_ready()
    return started[0]


@pytest.fixture(scope="session")
def guarded(started) -> Served:
    """Asks for a key, takes little, groups of 3, a deadline of one second."""
    started[1].wait_until_ready()
    return started[1]


@pytest.fixture(scope="session")
def gpm(gpm_checkpoint: Path) -> GPM:
    """The offline scorer of the same model."""
    return GPM.from_pretrained(gpm_checkpoint, device="cpu")
