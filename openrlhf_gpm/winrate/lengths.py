"""Win rates at equal length: what is left of a win when the longer answers are taken away.

Notation: N prompts, P policies, Q pairs of policies i < j, b draws of prompts.

Per pair, a logistic regression over the prompts of the win rate y_n in [0, 1] on the length difference:

    y_n ~ sigmoid(level + slope x_n),   x_n = tanh(d_n / rms(d)),   d_n = length of i's answer - length of j's

fitted by cross-entropy, with a normal prior of standard deviation 10 on the slope. The length-controlled win rate is
sigmoid(level), the fit at d = 0. It is not AlpacaEval's: that one fits all its models at once, with a term for how
hard each instruction is, and takes the mean of its predictions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

PRIOR = 10.0
"""Standard deviation of the slope, in log-odds."""

MAX_STEPS = 200
LONGEST = 2.0
"""Nats that level and slope move per step."""


@dataclass(frozen=True, eq=False)
class LengthControl:
    """The fit of every pair; NaN where the data has no answer (`compared`)."""

    win_rates: Tensor
    """(P, P), of the row against the column."""

    slopes: Tensor
    """(P, P), symmetric: log-odds that the judge gives for x = 1; above 0 it favours the longer answer."""

    draws: Tensor
    """(B, P, P): the win rates of each draw."""


def control_lengths(by_prompt: Tensor, lengths: Tensor, shares: Iterable[Tensor]) -> LengthControl:
    """by_prompt: (N, P, P) win rates; lengths: (N, P) characters; shares: blocks of draws, (b, N)."""
    N, P, _ = by_prompt.shape
    i, j = torch.triu_indices(P, P, 1)
    y = by_prompt.double()[:, i, j].T  # (Q, N)
    d = (lengths[:, i] - lengths[:, j]).double().T
    size = d.square().mean(-1, keepdim=True).sqrt()
    x = torch.tanh(d / torch.where(size > 0, size, 1.0))
    known = compared(d).unsqueeze(-1)

    def matrix(values: Tensor, other_side: Tensor, diagonal: float) -> Tensor:
        """(Q, b) of i against j and of j against i -> (b, P, P)."""
        whole = torch.full((values.shape[1], P, P), diagonal, dtype=torch.float64)
        whole[:, i, j] = torch.where(known, values, torch.nan).T
        whole[:, j, i] = torch.where(known, other_side, torch.nan).T
        return whole

    def win_rates(level: Tensor) -> Tensor:
        return matrix(level.sigmoid(), (-level).sigmoid(), 0.5)

    level, slope = fit(y, x, torch.full((1, N), 1 / N, dtype=torch.float64))
    drawn = [win_rates(fit(y, x, block)[0]) for block in shares]
    draws = torch.cat(drawn) if drawn else torch.zeros(0, P, P, dtype=torch.float64)
    return LengthControl(win_rates(level)[0], matrix(slope, slope, 0.0)[0], draws)


def compared(differences: Tensor) -> Tensor:
    """Whether equal length lies within the data: (Q, N) -> (Q,).

    If i's answers are longer to every prompt, a win at equal length would be made up.
    """
    return (differences <= 0).any(-1) & (differences >= 0).any(-1)


def fit(y: Tensor, x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Level and slope, (Q, b) each, of y (Q, N) on x (Q, N), with prompts counted by each row of shares (b, N)."""
    y, x = y.unsqueeze(1), x.unsqueeze(1)  # (Q, 1, N)
    level = torch.zeros(y.shape[0], len(shares), dtype=torch.float64)
    slope = torch.zeros_like(level)
    prior = 1 / (y.shape[-1] * PRIOR**2)
    for _ in range(MAX_STEPS):
        p = torch.sigmoid(level.unsqueeze(-1) + slope.unsqueeze(-1) * x)  # (Q, b, N)
        residual, weight = shares * (y - p), shares * p * (1 - p)
        up, tilt = residual.sum(-1), (residual * x).sum(-1) - prior * slope
        if bool((torch.maximum(up.abs(), tilt.abs()) < 1e-10).all()):
            return level, slope
        aa, ab, bb = weight.sum(-1), (weight * x).sum(-1), (weight * x.square()).sum(-1) + prior
        det = aa * bb - ab.square()
        level_step, slope_step = (bb * up - ab * tilt) / det, (aa * tilt - ab * up) / det
        shorten = (LONGEST / torch.maximum(level_step.abs(), slope_step.abs())).clamp(max=1.0)
        level, slope = level + shorten * level_step, slope + shorten * slope_step
    raise AssertionError(f"the length regression did not converge in {MAX_STEPS} steps")
