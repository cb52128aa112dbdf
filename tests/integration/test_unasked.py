"""Installed is not asked for: a Bradley-Terry run takes OpenRLHF's own path, to the last digit."""

import subprocess
import sys
from pathlib import Path

import pytest

PATCHES = Path(__file__).parents[2] / "patches" / "openrlhf-0.11.2"
# Without these OpenRLHF does not start on a CPU; the seam, and what builds on it, is left out.
CPU_ONLY = ["0001-accelerator-agnostic-devices.patch", "0002-weight-sync-without-nccl.patch"]


@pytest.fixture
def without_the_seam(tmp_path) -> Path:
    """OpenRLHF as released, except for the device patches."""
    site = tmp_path / "site"
    wheel = ["install", "-q", "--no-deps", "--no-compile", "--target", str(site), "openrlhf==0.11.2"]
    subprocess.run([sys.executable, "-m", "pip", *wheel], check=True)
    subprocess.run(["git", "apply", *(str(PATCHES / name) for name in CPU_ONLY)], cwd=site, check=True)
    assert not (site / "openrlhf" / "plugins.py").exists()
    return site


def test_bradley_terry_losses_are_bitwise_those_of_the_release(stack, without_the_seam, cpu_env, tmp_path):
    flags = ("--train.max_epochs", "2", "--model.margin_loss_enable", "--model.compute_fp32_loss_enable")
    released = stack.train_rm(tmp_path / "released", *flags, env=cpu_env | {"PYTHONPATH": str(without_the_seam)})
    patched = stack.train_rm(tmp_path / "patched", *flags)
    assert len(released["train/loss"]) == 8
    assert released == patched
