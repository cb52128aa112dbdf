"""Intervals by prompt: prompts are drawn with replacement, each with all its answers (a cluster bootstrap).

Notation: N prompts, B draws. A draw is a row of shares, how much each prompt counts in it; rows sum to 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

DRAWS = 1000
FEWEST = 10
"""Prompts below which no interval is given."""

EQUAL = 1e-12
"""Variance of win rates that is rounding."""

BLOCK = 500_000
"""Shares in memory at once."""


def shares(prompts: int, draws: int, seed: int) -> Iterator[Tensor]:
    """Blocks of draws, (b, N) in float64, B in all. Equal arguments give equal draws."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, BLOCK // prompts)
    for start in range(0, draws, size):
        drawn = torch.randint(prompts, (min(size, draws - start), prompts), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        yield counts.scatter_add_(1, drawn, torch.ones_like(counts)) / prompts


def resampled_means(values: Tensor, draws: int, seed: int) -> Tensor:
    """Means over the prompts of each draw: (N, ...) -> (B, ...), float64."""
    flat = values.double().flatten(1)
    means = torch.cat([block @ flat for block in shares(len(values), draws, seed)])
    return means.unflatten(-1, values.shape[1:])


def effective_prompts(by_prompt: Tensor, inside: Tensor) -> Tensor:
    """How many prompts with one answer each would say as much about the mean: (N, ...) -> (...), NaN where unknown.

    by_prompt: a value per prompt, the mean over pairs of answers; inside: the variance of these pairs' values.

        N_eff = variance of a single pair / variance of the mean = N (inside + between) / between

    where between is the variance over prompts, and inside the mean over them. It is N with one answer each, or where
    all answers to a prompt do equally well, and more where further answers say something new. It is unknown where no
    prompt differs from another.
    """
    between = (by_prompt - by_prompt.mean(0)).square().mean(0)
    found = len(by_prompt) * (1 + inside.mean(0) / between)
    return torch.where(between > EQUAL, found, torch.nan)


def middle(values: Tensor) -> Tensor:
    """The middle 95 %: (B, ...) -> (..., 2), low and high."""
    bounds = torch.tensor([0.025, 0.975], dtype=values.dtype)
    return values.quantile(bounds, 0).movedim(0, -1)
