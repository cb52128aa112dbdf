"""TRL's GRPO trainer with the reward function: three steps of a tiny policy, judged in the process and by a server."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from openrlhf_gpm.serving.trl import reward_function

PROMPTS = [{"prompt": [{"role": "user", "content": f"Name a prime above {i}."}]} for i in range(8)]


@pytest.mark.parametrize("source", ["directory", "url"])
def test_grpo_trains_on_the_win_rates_of_each_group(
    source, server, gpm, gpm_checkpoint, new_config, chat_tokenizer, tmp_path
):
    judge = reward_function(
        *([server.url] if source == "url" else [gpm_checkpoint]),
        reward="win_rate",
        group_size=4,
        **({} if source == "url" else {"device": "cpu"}),
    )
    calls = []

    def recorded(prompts, completions, **more):
        rewards = judge(prompts, completions, **more)
        calls.append((prompts, [completion[0]["content"] for completion in completions], rewards))
        return rewards

    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(new_config())
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    config = GRPOConfig(
        output_dir=str(tmp_path),
        num_generations=4,
        per_device_train_batch_size=8,
        max_steps=3,
        max_completion_length=8,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(policy, recorded, config, Dataset.from_list(PROMPTS), processing_class=chat_tokenizer)
    trainer.train()

    assert len(calls) == 3
    for prompts, texts, rewards in calls:
        for first in (0, 4):
            group = slice(first, first + 4)
            assert prompts[group] == [prompts[first]] * 4
            expected = gpm.score(prompts[first], texts[group])["win_rates"]
            assert rewards[group] == pytest.approx(expected, abs=1e-5)
            assert max(rewards[group]) > min(rewards[group])
    assert any(not torch.equal(before[name], weight) for name, weight in policy.state_dict().items())
