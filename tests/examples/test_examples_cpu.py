"""The CPU recipes as a user types them: train a GPM, score with it, align a policy by it, on a cluster of our own."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.integration


def shell(command: str, status: int = 0, **environment: str) -> str:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, stdout=log, stderr=log, timeout=600)
        log.seek(0)
        text = log.read()
    assert done.returncode == status, text[-6000:]
    return text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes write, after the first of them has trained the GPM."""
    folder = tmp_path_factory.mktemp("world")
    shell("examples/cpu/train_gpm.sh", WORLD=str(folder))
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray cluster with the three logical GPUs of gpo.sh."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A folder of its own, or this cluster would become the one that any `ray.init()` of this machine finds.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        start = f". examples/cpu/env.sh; exec ray start --head --block --port {port} --num-gpus 3 --num-cpus 8"
        options = f"--include-dashboard=false --object-store-memory 300000000 --temp-dir {folder}"
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        command = ["bash", "-c", f"{start} {options}"]
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            next(line for line in process.stdout if "will now block" in line)
            yield f"127.0.0.1:{port}"
            process.terminate()
            process.communicate(timeout=60)


def test_the_trained_gpm_scores_rock_paper_scissors_as_a_cycle(world: Path):
    group = {"id": "1", "prompt": "round 3", "responses": ["rock", "scissors", "paper"]}
    (world / "groups.jsonl").write_text(json.dumps(group) + "\n")
    shell(f"openrlhf-gpm score --model {world}/gpm --input {world}/groups.jsonl --output {world}/scores.jsonl")
    probs = json.loads((world / "scores.jsonl").read_text())["probs"]
    assert min(probs[0][1], probs[1][2], probs[2][0]) > 0.9  # each beats the next, so no order of the three exists


def test_doctor_counts_the_gpus_of_the_cluster(address: str):
    report = json.loads(shell("openrlhf-gpm doctor --json", RAY_ADDRESS=address))
    (cluster,) = (finding for finding in report["findings"] if finding["what"] == "ray cluster")
    assert cluster["found"] == f"{address}: 3 GPUs on 1 nodes"


def test_the_policy_is_aligned_and_saved(world: Path, address: str):
    shell("examples/cpu/gpo.sh", WORLD=str(world), RAY_ADDRESS=address)
    assert (world / "gpo" / "model.safetensors").exists()
    steps = sorted((world / "gpo" / "groups").glob("step_*.jsonl"))
    groups = [json.loads(line) for step in steps for line in step.read_text().splitlines()]
    assert len(steps) == 2
    assert {len(group["responses"]) for group in groups} == {8}


@pytest.mark.recipes
def test_three_prompts_train_the_policy_or_are_refused(world: Path, address: str):
    """They make one step, of 24 responses where --train.batch_size is 32, and its learning rate is 0 with warm-up."""
    rows = (world / "prompts.jsonl").read_text().splitlines(keepends=True)
    three = world / "three"
    three.mkdir()
    (three / "prompts.jsonl").write_text("".join(rows[:3]))
    for name in ("model", "gpm"):
        (three / name).symlink_to(world / name)
    environment = {"WORLD": str(three), "RAY_ADDRESS": address}
    refused = shell("examples/cpu/gpo.sh", status=2, **environment)
    assert "its learning rate is 0 because of warm-up: pass --actor.lr_warmup_ratio 0" in refused
    assert not (three / "gpo" / "config.json").exists()

    shell("examples/cpu/gpo.sh --actor.lr_warmup_ratio 0", **environment)
    (step,) = (three / "gpo" / "groups").glob("step_*.jsonl")
    assert len(step.read_text().splitlines()) == 3
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "model", three / "gpo"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
