"""A death ends the run: within half a minute, with a line that says who died, at which step, and how to go on."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

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
from openrlhf_gpm.trainer.policy.supervisor import supervise

@ray.remote(num_cpus=0)
class Rank:
    def process(self):
        return os.getpid()
    def collective(self):
        raise ConnectionError("closed by peer")

ray.init(log_to_driver=False)
ranks = [Rank.remote(), Rank.remote()]
processes = ray.get([rank.process.remote() for rank in ranks])
supervise({f"rank {i}": rank for i, rank in enumerate(ranks)}, lambda: 7, "out")
if DEATH:
    os.kill(processes[1], signal.SIGKILL)
ray.get(ranks[0].collective.remote())
"""


@pytest.fixture
def run(stack, gpm, ray_env, tmp_path):
    """Starts a run of 50 episodes into `tmp_path`/policy; it is over when the test is."""
    with ExitStack() as ended:

        def start(*mode, stdout=subprocess.PIPE):
            command = stack.ppo_command(
                tmp_path / "policy",
                *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm)),
                *("--actor.policy_loss_type", "gpo", "--train.num_episodes", "50", *mode),
            )
            process = subprocess.Popen(
                command, env=ray_env, stdout=stdout, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            ended.enter_context(process)
            ended.callback(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
            return process

        yield start


def youngest(title):
    """The process with this title that was started last, which is of the test's own run; None if there is none."""
    found = psutil.process_iter(["cmdline", "create_time"])
    actors = [each for each in found if title in " ".join(each.info["cmdline"] or [])]
    return max(actors, key=lambda each: each.info["create_time"], default=None)


def check_end(lines, step, name, ray_env, output):
    """The run has said who died and when; it has left no model, and all GPUs of the cluster are free."""
    line = rf"{step}: {name} died: .*--ckpt\.load_enable goes on from the last"
    assert any(re.search(line, each) for each in lines), "".join(lines[-20:])
    assert not (output / "config.json").exists()
    free = subprocess.check_output([sys.executable, "-c", FREE], env=ray_env, text=True)
    assert free.strip() == "8.0"


@pytest.mark.parametrize(
    ("title", "name", "mode"),
    [
        pytest.param("RolloutRayActor", "vLLM engine 0", [], marks=pytest.mark.recipes),
        pytest.param("GPMRewardActor", "reward rank 0", [], marks=pytest.mark.recipes),
        pytest.param("ObjectivePolicyActor", r"policy rank \d", TWO_RANKS, marks=pytest.mark.recipes),
        ("RolloutRayActor", "vLLM engine 0", ASYNC),
        pytest.param("GPMRewardActor", "reward rank 0", ASYNC, marks=pytest.mark.recipes),
        pytest.param("ObjectivePolicyActor", r"policy rank \d", ASYNC + TWO_RANKS, marks=pytest.mark.recipes),
        pytest.param("GenerateSamplesActor", "the generator of rollouts", ASYNC, marks=pytest.mark.recipes),
        pytest.param("GroupTrainingActor", "the trainer", ASYNC, marks=pytest.mark.recipes),
    ],
)
def test_a_run_ends_when_one_of_its_actors_is_killed(run, ray_env, tmp_path, title, name, mode):
    process, lines = run(*mode), []
    for words in ("Global step 2:", "Sample: "):  # the responses of a step are scored, and training begins
        for line in process.stdout:
            lines.append(line)
            if words in line:
                break
        else:
            pytest.fail(f"the run ended with {process.wait()} before {words!r}: {''.join(lines[-40:])}")
    killed = time.monotonic()
    youngest(title).kill()
    lines += process.stdout.readlines()
    assert process.wait(SECONDS) == 1
    assert time.monotonic() - killed < SECONDS
    step = "step ([2-4]|unknown)" if name == "the trainer" else "step [2-4]"  # it alone knows which had begun
    check_end(lines, step, name, ray_env, tmp_path / "policy")


@pytest.mark.parametrize(
    ("mode", "step"),
    [
        ([], "before the first step"),
        # The trainer may still be in the making, and then fails with the engine.
        pytest.param(ASYNC, "(before the first step|step unknown)", marks=pytest.mark.recipes),
    ],
)
def test_a_run_ends_when_an_engine_is_killed_while_the_models_load(run, ray_env, tmp_path, mode, step):
    """The policy's init waits for the engines, to which it will send its weights."""
    with open(tmp_path / "log", "w") as log:
        process = run(*mode, stdout=log)
    end = time.monotonic() + 240
    while youngest("ObjectivePolicyActor.init_model_from_pretrained") is None:
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < end
    youngest("RolloutRayActor").kill()
    assert process.wait(SECONDS) == 1
    check_end((tmp_path / "log").read_text().splitlines(), step, "vLLM engine 0", ray_env, tmp_path / "policy")


@pytest.mark.parametrize("death", [True, False])
def test_a_rank_that_fails_because_its_peer_died_is_not_blamed(ray_env, death):
    script = PEER.replace("DEATH", str(death))
    done = subprocess.run([sys.executable, "-c", script], env=ray_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ConnectionError: closed by peer" in done.stderr
    assert ("step 7: rank 1 died: " in done.stdout) is death
    assert "step 7: rank 0" not in done.stdout
