"""What the recipes need to run to their end on two CPUs: small inputs, and flags that change sizes only."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}w1 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w2 {% endif %}"
POLICY_SIZES = {
    "--actor.num_gpus_per_node": "1",
    "--reward.num_gpus_per_node": "1",
    "--vllm.num_engines": "2",
    "--rollout.batch_size": "8",
    "--rollout.max_new_tokens": "8",
    "--train.batch_size": "20",
    "--data.max_len": "48",
}


def words(flags: dict[str, str]) -> list[str]:
    return [word for flag in flags.items() for word in flag]


def make_policy(stack, folder: Path) -> Path:
    """The tiny policy with a chat template."""
    shutil.copytree(stack.world["policy"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def make_prompts(stack, folder: Path, passes: int, count: int) -> dict[int, list[str]]:
    """The prompts of each pass, which are in FOLDER/prompts{pass}.jsonl too."""
    prompts = {n: [f"w{20 * n + i} w{i + 1} w{i + 2}" for i in range(count)] for n in range(1, passes + 1)}
    for number, texts in prompts.items():
        stack.write_jsonl(folder / f"prompts{number}.jsonl", [{"prompt": text} for text in texts])
    return prompts


def logged_prompts(stack, folder: Path) -> list[str]:
    """Every prompt in a group log, as often as it is there."""
    return sorted(row["prompt"] for file in folder.glob("step_*") for row in stack.read_jsonl(file))
