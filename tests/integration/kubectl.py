"""Stands in for `kubectl apply -f FILE` and the KubeRay operator: does what a RayJob asks for, on other machines.

usage: kubectl.py MACHINES apply -f FILE, where MACHINES is a JSON list of [address, words in front of a command there]

Head and workers start as the operator starts them: `rayStartParams`, the CPUs of `limits`, and the container's
variables. The entrypoint is submitted to the head's dashboard. Unlike the real program it waits for the job.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PORT = 6398


def start(group: dict[str, Any], within: list[str], *flags: str) -> subprocess.Popen[str]:
    """`ray start` in the group's container."""
    (container,) = group["template"]["spec"]["containers"]
    params = {"num-cpus": container["resources"]["limits"]["cpu"], **group["rayStartParams"]}
    env = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    command = [*within, "ray", "start", "--block", *flags, *(f"--{name}={value}" for name, value in params.items())]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    node = subprocess.Popen(command, env=os.environ | env, **options)
    if not any("Ray runtime started" in line for line in node.stdout or ()):
        sys.exit(f"ray start exited with {node.wait()}")
    return node


def main() -> int:
    machines = json.loads(Path(sys.argv[1]).read_text())
    assert sys.argv[2:4] == ["apply", "-f"]
    job = yaml.safe_load(Path(sys.argv[4]).read_text())["spec"]
    head, (workers,) = job["rayClusterSpec"]["headGroupSpec"], job["rayClusterSpec"]["workerGroupSpecs"]
    address, within = machines[0]
    nodes = []
    try:
        flags = ("--head", f"--port={PORT}", f"--node-ip-address={address}", "--dashboard-host=0.0.0.0")
        nodes.append(start(head, within, *flags))
        for i in range(workers["replicas"]):
            nodes.append(start(workers, machines[i % len(machines)][1], f"--address={address}:{PORT}"))
        submit = ["ray", "job", "submit", f"--address=http://{address}:8265", "--", *shlex.split(job["entrypoint"])]
        return subprocess.run([*within, *submit]).returncode
    finally:
        for node in reversed(nodes):
            os.killpg(node.pid, signal.SIGTERM)
            node.communicate(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
