"""A death ends the run: within half a minute, with a line that says who died, at which step, and how to go on."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

SECONDS = 30

ASYNC = ["--train.async_enable"]
TWO_RANKS = ["--actor.num_gpus_per_node", "2"]

FREE = """
import time, ray
ray.init(log_to_driver=False)
end = time.monotonic() + 30
while ray.available_resources().get("GPU") != 8 and time.monotonic() < end:
    pass
print(ray.available_resources().get("GPU"))
"""
PEER = """
import os, signal, ray
from openrlhf_gpm.trainer.policy.supervisor import supervised

@ray.remote(num_cpus=0)
class Rank:
    def process(self):
        return os.getpid()
    def collective(self):
        raise ConnectionError("closed by peer")

ray.init(log_to_driver=False)
ranks = [Rank.remote(), Rank.remote()]
processes = ray.get([rank.process.remote() for rank in ranks])
with supervised({f"rank {i}": rank for i, rank in enumerate(ranks)}, lambda: 7, "out"):
    if DEATH:
        os.kill(processes[1], signal.SIGKILL)
    ray.get(ranks[0].collective.remote())
"""


@pytest.mark.parametrize(
    ("title", "name", "mode"),
    [
        ("RolloutRayActor", "vLLM engine 0", []),
        ("GPMRewardActor", "reward rank 0", []),
        pytest.param("ObjectivePolicyActor", r"policy rank \d", TWO_RANKS, marks=pytest.mark.recipes),
        ("RolloutRayActor", "vLLM engine 0", ASYNC),
        pytest.param("GPMRewardActor", "reward rank 0", ASYNC, marks=pytest.mark.recipes),
        pytest.param("ObjectivePolicyActor", r"policy rank \d", ASYNC + TWO_RANKS, marks=pytest.mark.recipes),
        pytest.param("GenerateSamplesActor", "the generator of rollouts", ASYNC, marks=pytest.mark.recipes),
        pytest.param("GroupTrainingActor", "the trainer", ASYNC, marks=pytest.mark.recipes),
    ],
)
def test_a_run_ends_when_one_of_its_actors_is_killed(stack, gpm, ray_env, tmp_path, title, name, mode):
    command = stack.ppo_command(
        tmp_path / "policy",
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--actor.policy_loss_type", "gpo"),
        *("--train.num_episodes", "50", *mode),
    )
    process = subprocess.Popen(
        command, env=ray_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines = []
    try:
        for words in ("Global step 2:", "Sample: "):  # the responses of a step are scored, and training begins
            for line in process.stdout:
                lines.append(line)
                if words in line:
                    break
            else:
                pytest.fail(f"the run ended with {process.wait()} before {words!r}: {''.join(lines[-40:])}")
        found = psutil.process_iter(["cmdline", "create_time"])
        actors = [each for each in found if title in " ".join(each.info["cmdline"] or [])]
        victim = max(actors, key=lambda each: each.info["create_time"])  # the youngest is of this run
        killed = time.monotonic()
        victim.kill()
        lines += process.stdout.readlines()
        assert process.wait(SECONDS) == 1
        assert time.monotonic() - killed < SECONDS
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    step = r"step ([2-4]|unknown)" if name == "the trainer" else "step [2-4]"  # it alone knows which had begun
    line = rf"RuntimeError: {step}: {name} died: .*--ckpt\.load_enable goes on from the last"
    assert any(re.search(line, each) for each in lines), "".join(lines[-20:])
    assert not (tmp_path / "policy" / "config.json").exists()
    free = subprocess.check_output([sys.executable, "-c", FREE], env=ray_env, text=True)
    assert free.strip() == "8.0"  # all of the cluster's


@pytest.mark.parametrize(
    ("death", "said"),
    [
        (True, "RuntimeError: step 7: rank 1 died: "),
        (False, "ConnectionError: closed by peer"),
    ],
)
def test_a_rank_that_fails_because_its_peer_died_is_not_blamed(ray_env, death, said):
    script = PEER.replace("DEATH", str(death))
    done = subprocess.run([sys.executable, "-c", script], env=ray_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(said), done.stderr[-3000:]
