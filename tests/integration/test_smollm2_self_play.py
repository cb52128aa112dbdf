"""examples/smollm2/self_play.sh on a tiny model, from preference data to the win rates; only sizes are changed."""

import itertools
import json

import pytest
import torch
from recipe_world import make_policy, words
from safetensors.torch import load_file

from openrlhf_gpm.data import read_preferences

SCRIPT = "examples/smollm2/self_play.sh"
SIZES = {"--rollout.max_new_tokens": "4", "--data.max_len": "48", "--ckpt.save_steps": "1"}
JUDGES = {"--data.max_len": "48", "--train.max_epochs": "1"}
NAMES = {"start", "against_bt", "gpo", "gpo_magnet"}

pytestmark = pytest.mark.recipes


def test_all_policies_are_judged_by_a_gpm_of_other_prompts_and_nothing_is_done_twice(stack, ray_env, tmp_path):
    make_policy(stack, tmp_path / "model")
    answers = [[f"w{40 + 7 * i + j} w{3 + j}" for j in range(3)] for i in range(24)]
    rows = [
        {"prompt": [{"role": "user", "content": f"w{i + 3}"}], "chosen": of[j], "rejected": of[j - 2]}
        for i, of in enumerate(answers)
        for j in range(3)
    ]
    stack.write_jsonl(tmp_path / "cycles.jsonl", rows)
    sizes = {"LAYERS": "", "PASSES": "1", "PROMPTS": "24", "TRAIN": "9", "TOKENS": "4"}
    env = ray_env | sizes | {"OUT": str(tmp_path), "JUDGE_FLAGS": " ".join(words(JUDGES))}
    command = ["bash", SCRIPT, str(tmp_path / "cycles.jsonl"), *words(SIZES)]
    stack.run(command, tmp_path / "log", env, timeout=900)

    play = tmp_path / "self_play"
    parts = [play / name for name in ("policy.jsonl", "new.jsonl", "data/cycles/held_out.jsonl")]
    prompts = [{str(group.prompt) for _, group in read_preferences(part)} for part in parts]
    assert [len(part) for part in prompts] == [9, 3, 12]
    assert len(set.union(*prompts)) == 24
    found = json.loads((play / "winrate/metrics.json").read_text())
    assert set(found["policies"]) == NAMES
    assert found["prompts"] == 3
    start = load_file(tmp_path / "model/model.safetensors")
    trained = [load_file(play / name / "pass1/model.safetensors") for name in sorted(NAMES - {"start"})]
    for first, second in itertools.combinations([start, *trained], 2):
        assert any(not torch.equal(first[name], second[name]) for name in second)

    again = stack.run(command, tmp_path / "log", env)
    assert "== " not in again
    assert again.count("pass 1 is done") == 3
