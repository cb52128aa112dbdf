"""The launchers for Ray jobs and Kubernetes, run to their end on two machines, with the real `ray job submit`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from namespaces import ADDRESSES, Machines, environment, machines, needs_namespaces
from recipe_world import POLICY_SIZES, ROOT, logged_prompts, make_policy, make_prompts, words

DASHBOARD = f"http://{ADDRESSES[0]}:8265"
KUBECTL = Path(__file__).with_name("kubectl.py")
pytestmark = [needs_namespaces, pytest.mark.recipes]


@pytest.fixture
def inputs(stack, gpm, cpu_env, tmp_path):
    """(machines, folder of policy and prompts, prompts, environment)."""
    make_policy(stack, tmp_path / "policy")
    (prompts,) = make_prompts(stack, tmp_path, passes=1, count=9).values()
    with machines(tmp_path) as both:
        env = environment(cpu_env, both) | {
            "POLICY": f"{tmp_path}/policy",
            "REWARD": str(gpm),
            "OUT": f"{tmp_path}/out",
        }
        yield both, tmp_path, prompts, env | {"DATA": f"{tmp_path}/prompts{{pass}}.jsonl", "PASSES": "1", "NODES": "2"}


@contextmanager
def cluster(both: Machines, env: dict[str, str]) -> Iterator[None]:
    """A Ray cluster with one GPU on each machine, and its dashboard."""
    port = f"{ADDRESSES[0]}:6399"
    short = tempfile.mkdtemp(prefix="r")  # for sockets
    head = ["--head", "--port=6399", f"--node-ip-address={ADDRESSES[0]}", "--dashboard-host=0.0.0.0"]
    head.append(f"--temp-dir={short}")
    nodes = []
    try:
        for i, flags in enumerate((head, [f"--address={port}"])):
            command = [*both.within(i), "ray", "start", "--block", "--num-gpus=1", "--num-cpus=2", *flags]
            node = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            nodes.append(node)
            assert any("Ray runtime started" in line for line in node.stdout)
        yield
    finally:
        for node in reversed(nodes):
            os.killpg(node.pid, signal.SIGTERM)
            node.communicate(timeout=60)
        shutil.rmtree(short, ignore_errors=True)


def check_pass(stack, folder: Path, prompts: list[str]) -> None:
    """The pass took its planned steps over every prompt once, and its policy is there."""
    curves = stack.read_scalars(folder / "out" / "tensorboard" / "pass1")
    assert curves["train/optimizer_steps"] == [2, 1]
    assert logged_prompts(stack, folder / "groups") == sorted(prompts)
    assert (folder / "out" / "pass1" / "model.safetensors").exists()
    assert not (folder / "out" / "pass1" / "deepspeed").exists()


def test_a_ray_job_runs_the_recipe_on_both_machines(inputs, stack):
    both, folder, prompts, env = inputs
    flags = words(POLICY_SIZES | {"--gpm.log_groups": f"{folder}/groups"})
    script = ["bash", str(ROOT / "examples/cluster/ray_job.sh"), *flags]
    with cluster(both, env):
        output = stack.run([*both.within(1), *script], folder / "job.log", env | {"RAY_DASHBOARD": DASHBOARD})
    assert "succeeded" in output
    check_pass(stack, folder, prompts)


def test_the_kuberay_file_runs_the_recipe(inputs, stack):
    """With its replicas, GPUs and CPUs made smaller, and its paths those of this machine."""
    both, folder, prompts, env = inputs
    text = (ROOT / "examples/cluster/kuberay.yaml").read_text()
    text = text.replace("/opt/openrlhf-gpm", str(ROOT)).replace("/shared", str(folder))
    job = yaml.safe_load(text)
    spec, (workers,) = job["spec"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    workers["rayStartParams"]["num-gpus"] = "1"
    for size in ("replicas", "minReplicas", "maxReplicas"):
        workers[size] = 2
    workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2"
    flags = POLICY_SIZES | {"--gpm.log_groups": f"{folder}/groups"}
    spec["entrypoint"] = spec["entrypoint"].replace("NODES=4", "NODES=2") + " " + " ".join(words(flags))
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    (folder / "ckpt").mkdir()
    (folder / "ckpt" / "gpm-gemma-2b").symlink_to(env.pop("REWARD"))
    (folder / "out").mkdir()
    (folder / "ckpt" / "gpo-llama3-8b").symlink_to(folder / "out")
    env.pop("OUT")
    (folder / "machines.json").write_text(json.dumps([[ADDRESSES[i], both.within(i)] for i in (0, 1)]))
    both.program("kubectl", f'#!/bin/sh\nexec {sys.executable} {KUBECTL} {folder}/machines.json "$@"\n')
    stack.run(["kubectl", "apply", "-f", str(folder / "job.yaml")], folder / "kubectl.log", env)
    check_pass(stack, folder, prompts)
