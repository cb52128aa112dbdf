"""`score --ray` on two machines, which are network namespaces: the bytes of one process, whoever dies meanwhile."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from namespaces import ADDRESSES, NAMES, environment, machines, needs_namespaces
from ray_nodes import Cluster, running

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, save_gpm
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.data import Group
from openrlhf_gpm.scoring.shards import Shard

HEAD = f"{ADDRESSES[0]}:6379"
ROWS = [
    {"id": f"q{i}", "prompt": "Name a prime. " * (i % 3 + 1), "responses": [f"{i}", "9" * (i % 7)]} for i in range(900)
]
DISK = 'mount --bind "$0" "$1" && shift && exec "$@"'
"""In a mount namespace of its own: the folder $1 is the folder $0 there."""


class World:
    """A folder that both machines see, in it `first`, where the second machine has a disk of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.first, self.second = folder, folder / "first", folder / "second"
        self.source = folder / "in.jsonl"
        self.source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        self.model = shutil.copytree(model, folder / "gpm")
        for place in (self.first, self.second):
            place.mkdir()
        shutil.copytree(model, self.first / "here_only")
        for place in (self.first, self.second):
            shutil.copytree(model, place / "unlike")
        weights = self.second / "unlike" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)

    def command(self, out: Path, *flags: str, command: str = "score", model: Path | None = None) -> list[str]:
        words = [command, "--model", model or self.model, "--input", self.source, "--output", out, "--device", "cpu"]
        return [sys.executable, "-m", "openrlhf_gpm.cli.main", *map(str, words), "--batch_tokens", "32", *flags]


@pytest.fixture(scope="module")
def world(tmp_path_factory, gpm_checkpoint) -> World:
    return World(tmp_path_factory.mktemp("rayscore"), gpm_checkpoint)


@pytest.fixture(scope="module")
def alone(world, cpu_env) -> Callable[[str], bytes]:
    """alone(command) -> what one process writes, without Ray."""
    made = {}

    def run(command: str) -> bytes:
        if command not in made:
            out = world.folder / f"{command}.jsonl"
            subprocess.run(world.command(out, command=command), env=cpu_env, check=True, timeout=120)
            made[command] = out.read_bytes()
        return made[command]

    return run


@pytest.fixture(scope="module")
def cluster(world, cpu_env) -> Iterator[tuple[Cluster, list[str]]]:
    """(two nodes of 2 CPUs, what goes before a command on the first)."""
    with machines(world.folder) as both, running(Cluster(environment(cpu_env, both))) as cluster:
        cluster.address = HEAD
        own = ["unshare", "--mount", "bash", "-c", DISK, str(world.second), str(world.first)]
        flags = ("--head", "--port=6379", f"--temp-dir={cluster.folder}", "--include-dashboard=false", "--num-cpus=2")
        cluster.start(*flags, f"--node-ip-address={ADDRESSES[0]}", within=both.within(0))
        cluster.join("--num-cpus=2", f"--node-ip-address={ADDRESSES[1]}", within=[*both.within(1), *own])
        yield cluster, both.within(0)


@pytest.fixture
def start(world, cluster) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of `World.command` on the first machine; killed at the end."""
    nodes, within = cluster
    started = []

    def run(out: Path, *flags: str, **options) -> subprocess.Popen[str]:
        command = [*within, *world.command(out, "--ray", HEAD, *flags, **options)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=nodes.env, start_new_session=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """The last line of stderr of a run that ends with this status."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err[-3000:]
    return err.splitlines()[-1]


def wait_for_lines(process: subprocess.Popen[str], out: Path, number: int = 100) -> None:
    """Until the run has written so many lines."""
    partial = Path(f"{out}.partial")
    end = time.monotonic() + 120
    while not partial.exists() or partial.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)


@needs_namespaces
def test_a_worker_that_is_killed_costs_nothing_and_nothing_is_there_twice(world, cluster, start, alone):
    """Neither node sees the driver's output: the second has another disk there."""
    expected, out = alone("score"), world.first / "killed.jsonl"
    process = start(out, "--workers", "3")
    wait_for_lines(process, out)
    second = cluster[0].nodes[1]
    workers = [each for each in cluster[0].processes(second) if "ray::Worker" in " ".join(each.cmdline())]
    workers[0].kill()
    finish(process)
    assert out.read_bytes() == expected
    assert not list(world.second.glob("killed*"))


@needs_namespaces
def test_a_killed_driver_goes_on_with_what_is_missing(world, start, alone):
    """Here of `embed`, which is the same command with other lines."""
    expected, out = alone("embed").splitlines(), world.folder / "driver.jsonl"
    process = start(out, "--workers", "3", command="embed")
    wait_for_lines(process, out)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = 0
    for file in (Path(f"{out}.partial"), *Path(f"{out}.partial.waiting").glob("*.jsonl")):
        whole, half, _ = file.read_bytes().rpartition(b"\n")
        marked = [json.dumps(json.loads(line) | {"kept": True}).encode() for line in whole.splitlines()]
        file.write_bytes(b"\n".join(marked) + half)
        kept += len(marked)
    assert 100 <= kept < len(ROWS)
    finish(start(out, "--workers", "2", command="embed"))
    found = out.read_bytes().splitlines()
    assert sum(json.loads(line).pop("kept", False) for line in found) == kept
    for line, one in zip(found, expected, strict=True):
        assert line == one if b'"kept"' not in line else json.loads(line) == json.loads(one) | {"kept": True}


@pytest.mark.recipes  # on a slow machine the other node may have done all before this one has its model
@needs_namespaces
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("here_only", r"cannot read --model \S+/here_only: put it on storage that all nodes share"),
        ("unlike", r"has other files in --model \S+/unlike: give all nodes one image and one shared folder"),
    ],
)
def test_a_node_that_has_not_the_drivers_model_is_named(world, start, model, said):
    out = world.folder / f"{model}.jsonl"
    line = finish(start(out, "--workers", "4", model=world.first / model), 2)
    assert re.match(rf"error: node {NAMES[1]} \({ADDRESSES[1]}\) {said}", line)
    assert not out.exists()


@needs_namespaces
def test_more_workers_than_the_cluster_has_room_for_are_refused(world, start):
    line = finish(start(world.folder / "many.jsonl", "--workers", "3", "--cpus_per_worker", "2"), 2)
    assert f"--workers 3: --ray {HEAD} has room for 2 with 2 CPUs each (2 nodes, 0 GPUs, 4 CPUs)" in line
    line = finish(start(world.folder / "many.jsonl"), 2)
    assert f"--ray {HEAD} needs --workers N: the cluster has room for 4 on cpu" in line


# On this machine


@pytest.fixture
def here(world, tmp_path, capsys):
    """Runs `score` in this process -> (exit status, last line of stderr)."""

    def run(*flags: str, model: Path | None = None) -> tuple[int, str]:
        status = cli.main(world.command(tmp_path / "out.jsonl", *flags, model=model)[3:])
        return status, capsys.readouterr().err.splitlines()[-1]

    return run


def test_no_ray_at_the_address_is_said(here):
    status, line = here("--ray", "127.0.0.1:1", "--workers", "2")
    assert status == 2
    assert line.startswith("error: --ray 127.0.0.1:1: nothing answers there (")
    assert "start it with `ray start --head`, or correct the address" in line


@pytest.mark.parametrize("flag", ["--workers", "--cpus_per_worker"])
def test_numbers_below_one_are_refused(here, flag):
    assert here("--ray", "127.0.0.1:1", flag, "0") == (2, f"error: {flag} must be >= 1, got 0")


def test_one_of_several_gpus_is_no_place_for_several_workers(here):
    status, line = here("--workers", "2", "--device", "cuda:1")
    assert status == 2
    assert line.startswith(
        "error: --device cuda:1 with --ray or --workers: give cuda, one GPU for each worker, or cpu"
    )


def test_what_a_worker_raises_ends_the_run_with_its_message(here, world, chat_tokenizer, tmp_path):
    model = load_gpm(world.model)
    model.score.weight.data[0, 0] = float("nan")
    save_gpm(model, chat_tokenizer, tmp_path / "broken")
    status, line = here("--workers", "1", "--ray", "local", model=tmp_path / "broken")
    assert status == 2
    assert re.match(r"error: group 'q\d+': the model's embeddings are not finite", line)


def test_a_shard_that_takes_its_workers_down_ends_the_run_with_a_hint(world):
    from openrlhf_gpm.scoring.ray_workers import connected, score_on_ray

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    work = iter([(Shard(7, 9), [Group("p", ["a"])] * 2)])
    with connected("local", 1, "cpu", 1) as workers, pytest.raises(ValueError, match=r"groups 7 to 8 took 3 workers"):
        list(score_on_ray(workers, work, lambda device: device, die, world.model, None))
