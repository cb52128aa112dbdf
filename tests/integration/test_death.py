"""A death ends the run: within half a minute, with a line that says who died, at which step, and how to go on."""

import os
import signal
import subprocess
import time

import psutil
import pytest

SECONDS = 30


ASYNC = ["--train.async_enable"]


@pytest.mark.parametrize(
    ("title", "name", "mode"),
    [
        ("RolloutRayActor", "vLLM engine 0", []),
        ("GPMRewardActor", "reward rank 0", []),
        ("RolloutRayActor", "vLLM engine 0", ASYNC),
        pytest.param("GPMRewardActor", "reward rank 0", ASYNC, marks=pytest.mark.recipes),
        pytest.param("GenerateSamplesActor", "the generator of rollouts", ASYNC, marks=pytest.mark.recipes),
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
        for line in process.stdout:
            lines.append(line)
            if "Global step 2:" in line:
                break
        else:
            pytest.fail(f"the run ended with {process.wait()} before step 2: {''.join(lines[-40:])}")
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
    reasons = [line for line in lines if f"{name} died" in line and "--ckpt.load_enable" in line]
    steps = ("step 2", "step 3", "step 4")  # whichever had begun
    assert any(step in line for step in steps for line in reasons), "".join(lines[-20:])
    assert not (tmp_path / "policy" / "config.json").exists()
