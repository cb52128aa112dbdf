"""A world small enough for a CPU: a model of 85,000 weights, and the preferences of rock, paper, scissors.

    python examples/cpu/tiny.py outputs/tiny

writes outputs/tiny/model (random weights, word tokenizer, chat template), pairs.jsonl and prompts.jsonl.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
BEATS = {"rock": "scissors", "scissors": "paper", "paper": "rock"}
COUNTS = (4, 2, 1)  # comparisons of each pair; with equal counts, equal embeddings would be a saddle of the loss
ROUNDS = [f"round {number}" for number in range(1, 9)]
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *BEATS, "round", *map(str, range(1, 9))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's attention on a CPU needs heads of at least 32
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,  # with 0.02 the answers would start with nearly the same vector
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def write(folder: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pairs = [
        {"prompt": prompt, "chosen": winner, "rejected": loser}
        for prompt in ROUNDS
        for (winner, loser), count in zip(BEATS.items(), COUNTS, strict=True)
        for _ in range(count)
    ]
    for name, rows in (("pairs", pairs), ("prompts", [{"prompt": prompt} for prompt in ROUNDS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/cpu/tiny.py DIR")
    write(Path(sys.argv[1]))
