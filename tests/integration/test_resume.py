"""A run that is killed in the middle of the Ray loop goes on as if it had not been, its frozen policies included."""

import os
import signal
import subprocess

import pytest

STEP = "train/policy_loss"
LONG = pytest.mark.recipes
RUNS = {  # a regression with a magnet, a pair objective, a policy gradient -> flags, and the drift that it logs
    "gpo": (["--gpo.beta", "0.5", "--gpo.pull", "0.5"], "train/drift_ema_q95"),
    "inpo": (["--gpo.beta", "0.5", "--gpo.ref_pull", "0.25"], "train/drift_ref_q95"),
    "nash_md": (["--nash_md.beta", "0.1", "--nash_md.mixture", "0.25"], "train/drift_ref_q95"),
}


@pytest.mark.parametrize("name", [name if name == "gpo" else pytest.param(name, marks=LONG) for name in RUNS])
def test_a_killed_run_resumes_with_the_next_steps_loss(stack, gpm, ray_env, tmp_path, name):
    of_objective, drift = RUNS[name]
    flags = (
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--actor.policy_loss_type", name),
        *("--train.full_determinism_enable", "--ckpt.save_steps", "1", *of_objective),
        *("--rollout.batch_size", "2", "--train.batch_size", "8"),  # 16 steps: the kill is well before the last
    )
    whole = stack.train_ppo_ray(tmp_path / "whole", *flags, env=ray_env)

    command = stack.ppo_command(tmp_path / "cut", *flags)
    process = subprocess.Popen(
        command, env=ray_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Global step 3:" in line:  # the log runs a few steps behind
            os.killpg(process.pid, signal.SIGKILL)
            break
    else:
        pytest.fail(f"the run ended with {process.wait()} before step 3: {''.join(lines[-40:])}")
    process.wait()
    latest = (tmp_path / "cut_ckpt" / "_actor" / "latest").read_text()
    done = int(latest.removeprefix("global_step"))
    assert 2 <= done < 16

    rest = stack.train_ppo_ray(
        tmp_path / "rest", *flags, "--ckpt.path", str(tmp_path / "cut_ckpt"), "--ckpt.load_enable", env=ray_env
    )
    assert len(whole[STEP]) == 16
    assert len(rest[STEP]) == 16 - done
    assert rest[STEP][0] == pytest.approx(whole[STEP][done], rel=1e-5)
    assert rest[drift][0] == pytest.approx(whole[drift][done], rel=1e-5)
    assert whole[drift][0] == 0.0
    assert whole[drift][done] > 1e-3
