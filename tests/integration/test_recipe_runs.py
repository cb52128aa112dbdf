"""The 8-GPU recipe as it is shipped, run on two CPU ranks: nothing is taken out of it, only sizes are appended."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "recipes" / "gpo_llama3_8b_8gpu.sh"
SIZES = {
    "--actor.num_gpus_per_node": "2",
    "--reward.num_gpus_per_node": "2",
    "--vllm.num_engines": "2",
    "--rollout.batch_size": "8",
    "--rollout.max_new_tokens": "8",
    "--train.batch_size": "20",
    "--data.max_len": "48",
}
TEMPLATE = "{% for m in messages %}w1 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w2 {% endif %}"


@pytest.fixture(scope="module")
def passes(stack, gpm, ray_env, tmp_path_factory) -> Path:
    """Two passes, each over its own 9 prompts: one rollout batch of 8 and one of a single prompt."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(stack.world["policy"], folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "policy")
    for number in (1, 2):
        rows = [{"prompt": f"w{10 * number + i} w{i + 1} w{i + 2}"} for i in range(9)]
        stack.write_jsonl(folder / f"prompts{number}.jsonl", rows)
    env = ray_env | {"PASSES": "2", "POLICY": str(folder / "policy"), "REWARD": str(gpm), "OUT": str(folder / "out")}
    env |= {"DATA": f"{folder}/prompts{{pass}}.jsonl"}
    command = ["bash", str(RECIPE), *(word for flag in SIZES.items() for word in flag)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for flag in ("--vllm.enable_sleep", "--vllm.sync_backend", "--ds.enable_sleep", "--ds.attn_implementation"):
        assert f"[CPU] {flag}" in done.stdout
    return folder


def test_both_passes_take_their_planned_steps(passes, stack):
    for number in (1, 2):
        curves = stack.read_scalars(passes / "out" / "tensorboard" / f"pass{number}")
        assert curves["train/optimizer_steps"] == [2, 1]
        assert curves["train/rollout/num_samples"] == [40, 5]


def test_each_pass_trains_the_policy_of_the_one_before(passes):
    folders = [passes / "policy", passes / "out" / "pass1", passes / "out" / "pass2"]
    weights = [
        torch.cat([p.flatten().float() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()])
        for folder in folders
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert not os.path.exists(passes / "out" / "pass1" / "deepspeed")
