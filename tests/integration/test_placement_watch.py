"""A placement group that cannot be had ends the run with one line, instead of a wait without end."""

import subprocess
import sys

SCRIPT = """
import ray
from ray.util.placement_group import placement_group
from openrlhf_gpm.trainer.policy.placement_watch import PlacementWatch
ray.init()
PlacementWatch(seconds=2).start()
ray.get(placement_group([{"GPU": 1, "CPU": 1}] * 2).ready())
print("first", flush=True)
ray.get(placement_group([{"GPU": 1, "CPU": 1}] * 7).ready())  # the cluster has 8 GPUs
"""


def test_what_cannot_be_placed_is_named_with_what_is_free(ray_env):
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=ray_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "first" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "could not be had" in line]
    assert "7 GPUs and 7 CPUs could not be had within 2 s" in line
    assert "6 GPUs and 14 CPUs" in line
