"""The quickstart's world: three games whose true preferences are known, and comparisons sampled from them unevenly.

Game n has n answers in a cycle (answer i beats answer i + 1 mod n) and one more that loses to all of them. Answers of
the cycle that are not neighbours are equally good. No reward can express a cycle; how badly it fails depends on which
comparisons are frequent, and real ones never come evenly.
"""

import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIN_PROB = 0.9  # of the better answer of a pair
EDGE_SHARES = (8.0, 2.0, 0.5, 2.0, 1.0)  # how often each edge of the cycle is compared; every other pair: 1
UNIT = 100  # comparisons per share


@dataclass(frozen=True)
class Game:
    """One prompt and its answers: the cycle in order, the dominated answer last. K = size + 1 answers."""

    prompt: str
    cycle: tuple[str, ...]
    dominated: str

    @property
    def size(self) -> int:
        """Length of the cycle."""
        return len(self.cycle)

    @property
    def answers(self) -> tuple[str, ...]:
        """All K answers, the dominated one last."""
        return (*self.cycle, self.dominated)

    @cached_property
    def probs(self) -> Tensor:
        """(K, K) float64, the true probability that the row's answer beats the column's."""
        n = self.size
        probs = torch.full((n + 1, n + 1), 0.5, dtype=torch.float64)
        better = torch.cat([torch.arange(n), torch.arange(n)])
        worse = torch.cat([(torch.arange(n) + 1) % n, torch.full((n,), n)])
        probs[better, worse] = WIN_PROB
        probs[worse, better] = 1 - WIN_PROB
        return probs

    @cached_property
    def scores(self) -> Tensor:
        """(K, K) float64, the true log-odds."""
        return torch.logit(self.probs)

    @cached_property
    def counts(self) -> Tensor:
        """(K, K) int64, symmetric with zero diagonal: how often each pair is compared."""
        n = self.size
        shares = torch.ones(n + 1, n + 1, dtype=torch.float64).fill_diagonal_(0)
        i = torch.arange(n)
        j = (i + 1) % n
        shares[i, j] = shares[j, i] = torch.tensor(EDGE_SHARES[:n], dtype=torch.float64)
        return (shares * UNIT).round().long()

    def decisive_pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of every pair with a better one: the n edges of the cycle, then the n wins over the last."""
        n = self.size
        return [(i, (i + 1) % n) for i in range(n)] + [(i, n) for i in range(n)]


# A prompt ends in a space: prompt + answer then has the tokens of the prompt followed by those of the answer.
GAMES = (
    Game("Name a throw. ", ("rock", "scissors", "paper"), "soap bubble"),
    Game("Name an animal. ", ("dog", "cat", "mouse", "elephant"), "garden snail"),
    Game("Name an element. ", ("wood", "earth", "water", "fire", "metal"), "thin air"),
)

# Where the policy starts: it prefers one answer of the cycle, so that the start is not the equilibrium already.
START_LOGITS = {3: (1.0, 0.4, 0.0), 4: (1.0, 0.4, 0.0, -0.2), 5: (1.0, 0.4, 0.0, -0.2, -0.2)}
START_LOGIT_DOMINATED = -0.3


def start_policy(game: Game) -> Tensor:
    """The policy to start from: (K,) float64, sums to 1."""
    return torch.tensor([*START_LOGITS[game.size], START_LOGIT_DOMINATED], dtype=torch.float64).softmax(-1)


def sample_wins(game: Game, seed: int) -> Tensor:
    """(K, K) int64: how often the row's answer beat the column's in `counts` comparisons of each pair."""
    generator = torch.Generator().manual_seed(seed + game.size)
    upper = torch.binomial(game.counts.double().triu(), game.probs, generator=generator).long().triu(1)
    return upper + (game.counts - upper).mT.tril(-1)


def pair_rows(games: tuple[Game, ...], seed: int) -> list[dict[str, Any]]:
    """The sampled comparisons as preference pairs, shuffled: {"prompt", "chosen", "rejected"}."""
    rows = [
        {"prompt": game.prompt, "chosen": game.answers[i], "rejected": game.answers[j]}
        for game in games
        for (i, j) in sample_wins(game, seed).nonzero().tolist()
        for _ in range(int(sample_wins(game, seed)[i, j]))
    ]
    random.Random(seed).shuffle(rows)
    return rows


def eval_rows(games: tuple[Game, ...]) -> list[dict[str, Any]]:
    """One row for every pair with a truly better answer; `subset` is the size of the cycle."""
    return [
        {
            "prompt": game.prompt,
            "chosen": game.answers[i],
            "rejected": game.answers[j],
            "subset": f"cycle of {game.size}",
        }
        for game in games
        for i, j in game.decisive_pairs()
    ]


def prompt_rows(games: tuple[Game, ...], groups: int) -> list[dict[str, Any]]:
    """The prompts of one rollout batch: every game's prompt `groups` times, one group of responses for each."""
    return [{"prompt": game.prompt} for game in games for _ in range(groups)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path, seed: int, groups: int) -> None:
    """Write pairs.jsonl (training), eval.jsonl (decisive pairs) and prompts.jsonl (one rollout batch)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "pairs.jsonl", pair_rows(GAMES, seed))
    write_jsonl(folder / "eval.jsonl", eval_rows(GAMES))
    write_jsonl(folder / "prompts.jsonl", prompt_rows(GAMES, groups))
