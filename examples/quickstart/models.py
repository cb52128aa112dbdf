"""Models small enough for a CPU: a word tokenizer, a Llama of 0.1 million weights, and the policy to start from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import GAMES, Game, start_policy

IGNORE = -100  # the label of a position that is not the answer's


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: encode(prompt + answer) is encode(prompt) + encode(answer)."""
    words = dict.fromkeys(word for game in GAMES for text in (game.prompt, *game.answers) for word in text.split())
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's attention on a CPU knows no heads narrower than 32
        num_key_value_heads=2,
        max_position_embeddings=64,
        # Ten times the usual: with 0.02 an untrained trunk says nearly the same of every text, and a GPM that starts
        # from equal embeddings stays at the saddle of the cycle for long.
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def answer_batch(tokenizer: Any, games: Sequence[Game]) -> dict[str, Tensor]:
    """Every game's prompt followed by each of its answers and EOS, right-padded: B rows, game after game.

    input_ids, attention_mask and labels, (B, T) each; `labels` are the ids of the answer and EOS, elsewhere IGNORE.
    """
    pairs = [(_encode(tokenizer, game.prompt), answer) for game in games for answer in game.answers]
    samples = [(prompt, [*_encode(tokenizer, answer), tokenizer.eos_token_id]) for prompt, answer in pairs]

    def pad(rows: list[list[int]], value: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    return {
        "input_ids": pad([prompt + answer for prompt, answer in samples], tokenizer.pad_token_id),
        "attention_mask": pad([[1] * len(prompt + answer) for prompt, answer in samples], 0),
        "labels": pad([[IGNORE] * len(prompt) + answer for prompt, answer in samples], IGNORE),
    }


def answer_log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log P(answer, EOS | prompt) of `answer_batch`'s rows: (B,) nats, exact."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    log_probs = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (log_probs * (labels != IGNORE)).sum(-1)


def policy_probs(model: Any, tokenizer: Any, game: Game) -> Tensor:
    """(K,) float64 probability of each answer; what is missing to 1 is the probability of any other text."""
    with torch.no_grad():
        return answer_log_probs(model, answer_batch(tokenizer, [game])).double().exp()


def train_start_policy(model: Any, tokenizer: Any, tolerance: float = 1e-3, max_steps: int = 1000) -> float:
    """Teach `model` the start policy of every game; returns the largest KL divergence left, in nats.

    The loss is the exact cross-entropy over the answers, so what it leaves to other texts goes to 0 too.
    """
    batch = answer_batch(tokenizer, GAMES)
    policies = [start_policy(game).float() for game in GAMES]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    worst = float("inf")
    model.train()
    for _ in range(max_steps):
        log_probs = answer_log_probs(model, batch).split([len(p) for p in policies])
        divergences = torch.stack([(p * (p.log() - q)).sum() for p, q in zip(policies, log_probs, strict=True)])
        worst = divergences.max().item()
        if worst < tolerance:
            break
        optimizer.zero_grad()
        divergences.sum().backward()
        optimizer.step()
    model.eval()
    return worst


def write_models(folder: Path, seed: int) -> float:
    """Write `base` (random, what both reward models grow from) and `start` (the policy); returns the start's KL."""
    tokenizer = make_tokenizer()
    base = make_model(tokenizer, seed)
    start = make_model(tokenizer, seed + 1)
    divergence = train_start_policy(start, tokenizer)
    for name, model in (("base", base), ("start", start)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return divergence


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
