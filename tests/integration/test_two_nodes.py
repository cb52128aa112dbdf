"""The GPO recipe as SLURM runs it, on two machines: the shipped script starts Ray and three passes of self-play."""

import itertools
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from namespaces import ADDRESSES, environment, machines, needs_namespaces
from recipe_world import POLICY_SIZES, ROOT, logged_prompts, make_policy, make_prompts, words
from safetensors.torch import load_file

PROMPTS = 17  # rollout batches of 8, 8 and 1
# Not sizes: what the tests look at. At the recipe's learning rate a few steps would not show in vLLM's log-probs.
LOOK = {
    "--gpm.log_groups": "groups{pass}",
    "--algo.advantage.is_correction_level": "token",
    "--rollout.top_p": "1",
    "--actor.adam.lr": "3e-3",
}
SLURM = {
    "SLURM_JOB_NODELIST": "node-[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_ID": "7",
    "SLURM_CPUS_PER_TASK": "2",
    "SLURM_GPUS_PER_NODE": "1",
}

pytestmark = needs_namespaces


@pytest.fixture(scope="module")
def run(stack, gpm, cpu_env, tmp_path_factory):
    """(folder, prompts of each pass, output); submitted with relative paths, as the script's head says."""
    folder = tmp_path_factory.mktemp("two")
    submitted = folder / "submitted"
    submitted.mkdir()
    (submitted / "examples").symlink_to(ROOT / "examples")
    (submitted / "gpm").symlink_to(gpm)
    make_policy(stack, submitted / "policy")
    prompts = make_prompts(stack, submitted, passes=3, count=PROMPTS)
    with machines(folder) as both, tempfile.TemporaryDirectory(prefix="r") as short:  # for sockets of Ray
        env = environment(cpu_env, both) | SLURM | {"TMPDIR": short}
        env |= {"POLICY": "policy", "REWARD": "gpm", "OUT": "out", "DATA": "./prompts{pass}.jsonl"}
        script = ["bash", "examples/cluster/slurm.sbatch", *words(POLICY_SIZES | LOOK)]
        output = stack.run([*both.within(0, submitted), *script], folder / "slurm.log", env, timeout=500)
    return submitted, prompts, output


def test_every_prompt_of_every_pass_is_trained_once(run, stack):
    submitted, prompts, _ = run
    for number, texts in prompts.items():
        assert logged_prompts(stack, submitted / f"groups{number}") == sorted(texts)


def test_the_passes_take_their_planned_steps(run, stack):
    for number in (1, 2, 3):
        curves = stack.read_scalars(run[0] / "out" / "tensorboard" / f"pass{number}")
        assert curves["train/optimizer_steps"] == [2, 2, 1]
        assert curves["train/rollout/num_samples"] == [40, 40, 5]


def test_each_pass_trains_the_policy_of_the_one_before(run):
    folders = [run[0] / "policy", *(run[0] / "out" / f"pass{number}" for number in (1, 2, 3))]
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for before, after in itertools.pairwise(weights):
        assert any(not torch.equal(before[name], after[name]) for name in after)


def test_what_only_a_gpu_can_do_is_replaced_with_a_line_each(run):
    for flag in ("--vllm.enable_sleep", "--vllm.sync_backend", "--ds.enable_sleep", "--ds.attn_implementation"):
        assert f"[CPU] {flag}" in run[2]


def test_a_finished_pass_drops_its_checkpoints(run):
    assert not list((run[0] / "out").glob("*/deepspeed"))


def test_vllm_follows(run, stack):
    """Were vLLM a step behind, some of a response's 8 tokens would differ by its share of what the response moved."""
    for number in (1, 2, 3):
        curves = stack.read_scalars(run[0] / "out" / "tensorboard" / f"pass{number}")
        gaps = curves["train/rollout/log_prob_gap_max"]
        for step, gap in enumerate(gaps[1:]):
            moved = max(curves["train/moved_q95"][step], -curves["train/moved_q05"][step])
            assert gap < moved / 8
        assert 1e-5 < max(curves["train/noise"]) < 0.05  # bf16, and not 0


def test_both_machines_work(run):
    """One policy rank, one reward actor and one engine on each; Ray names the address where it is not the driver's."""
    for actor in ("BaseObjectivePolicyActor", "BaseGPMRewardActor", "RolloutRayActor"):
        found = set(re.findall(rf"\({actor} pid=\d+(, ip=[\d.]+)?\)", run[2]))
        assert found == {"", f", ip={ADDRESSES[1]}"}


def test_nothing_is_left_running(run):
    left = subprocess.run(["pgrep", "-f", str(Path(run[0]).parent)], stdout=subprocess.PIPE, text=True).stdout
    assert left == ""
