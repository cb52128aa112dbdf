"""A disk that fills during a run is named with its bytes; nothing is half-written, and the run goes on later."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def mounted(*words):
    subprocess.run(words, check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that holds one checkpoint of the tiny policy, and no second."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted("mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder))
    yield folder
    mounted("umount", "-l", str(folder))


def test_a_full_disk_ends_the_run_before_the_checkpoint_and_more_space_lets_it_go_on(
    stack, gpm, ray_env, small_disk, tmp_path
):
    flags = (
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--actor.policy_loss_type", "gpo"),
        *("--ckpt.path", str(small_disk / "ckpt"), "--ckpt.save_steps", "1", "--ckpt.load_enable"),
    )
    command = stack.ppo_command(tmp_path / "policy", *flags)
    run = subprocess.run(command, env=ray_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 1
    checkpoints = small_disk / "ckpt" / "_actor"
    last = f"--ckpt.load_enable goes on from {checkpoints}/global_step1"
    (line,) = {line for line in run.stdout.splitlines() if line.startswith("OSError: ") and "the disk is full" in line}
    assert f"{checkpoints}: the disk is full (" in line
    assert "bytes free, and a checkpoint needs" in line
    assert line.endswith(last)
    assert (checkpoints / "latest").read_text() == "global_step1"
    assert [path.name for path in checkpoints.iterdir() if path.is_dir()] == ["global_step1"]
    assert not (tmp_path / "policy" / "config.json").exists()

    mounted("mount", "-o", "remount,size=200m", str(small_disk))
    shutil.rmtree(f"{tmp_path / 'policy'}_tb")
    rest = stack.train_ppo_ray(tmp_path / "policy", *flags, env=ray_env)
    assert len(rest["train/policy_loss"]) == 3  # of four steps
    assert Path(tmp_path / "policy" / "config.json").exists()
