"""The other recipes as they are shipped, run to their end: nothing is taken out of them, only sizes are appended."""

import json
import os
import subprocess
import sys

import pytest
from recipe_world import POLICY_SIZES, ROOT, logged_prompts, make_policy, make_prompts, words

from openrlhf_gpm import GPM

RECIPES = ROOT / "examples" / "recipes"
TWO_GPUS = {"--actor.num_gpus_per_node": "2", "--reward.num_gpus_per_node": "2"}
PAIR_SIZES = {"--data.max_len": "64", "--train.max_epochs": "1", "--train.batch_size": "16"}

pytestmark = pytest.mark.recipes


def test_sppo_on_the_best_and_the_worst_response(stack, gpm, ray_env, tmp_path):
    policy = make_policy(stack, tmp_path / "policy")
    (prompts,) = make_prompts(stack, tmp_path, passes=1, count=9).values()
    env = ray_env | {"PASSES": "1", "POLICY": str(policy), "REWARD": str(gpm), "OUT": f"{tmp_path}/out"}
    sizes = POLICY_SIZES | TWO_GPUS | {"--train.batch_size": "16", "--gpm.log_groups": f"{tmp_path}/groups"}
    script = ["bash", str(RECIPES / "sppo_llama3_8b_8gpu.sh"), "--gpo.hard", "--gpo.responses", "best_worst"]
    output = stack.run(
        [*script, *words(sizes)], tmp_path / "sppo.log", env | {"DATA": f"{tmp_path}/prompts{{pass}}.jsonl"}
    )
    for flag in ("--vllm.enable_sleep", "--vllm.sync_backend", "--ds.enable_sleep", "--ds.attn_implementation"):
        assert f"[CPU] {flag}" in output
    curves = stack.read_scalars(tmp_path / "out" / "tensorboard" / "pass1")
    assert curves["train/optimizer_steps"] == [1, 1]  # 2 of 5 responses: 16 of 8 prompts, then 2 of one
    assert logged_prompts(stack, tmp_path / "groups") == sorted(prompts)
    assert (tmp_path / "out" / "pass1" / "model.safetensors").exists()


def test_a_gpm_by_the_recipe_of_table_12(stack, cpu_env, tmp_path):
    policy = make_policy(stack, tmp_path / "base")
    turns = [
        {side: [{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": f"w{i + at}"}]}
        for i in range(40)
        for side, at in (("chosen", 1), ("rejected", 2))
    ]
    rows = [chosen | rejected for chosen, rejected in zip(turns[::2], turns[1::2], strict=True)]
    stack.write_jsonl(tmp_path / "pairs.jsonl", rows)
    env = cpu_env | {"MODEL": str(policy), "DATA": f"{tmp_path}/pairs.jsonl", "OUT": f"{tmp_path}/gpm"}
    stack.run(["bash", str(RECIPES / "train_gpm_8gpu.sh"), "gemma-2b", *words(PAIR_SIZES)], tmp_path / "gpm.log", env)
    scored = GPM.from_pretrained(str(tmp_path / "gpm")).score("w3", ["w4", "w5"])
    assert scored["scores"][0][1] == -scored["scores"][1][0]


def test_the_script_for_one_gpu_runs_on_a_cpu(cpu_env, tmp_path):
    """Its stages are the cyclic recipe and the GPO recipe on one device, among others."""
    file = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "tests", "train_rm", "self_play", "--output", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | cpu_env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:]
    stages = {each["stage"]: each for each in json.loads(file.read_text())["stages"]}
    assert [each["state"] for each in stages.values()] == ["skipped", "passed", "passed"]
    assert stages["tests"]["why"] == "no CUDA device"
