"""Metrics of groups without labels: how cyclic they are, and whether ways to pick the best response agree.

Notation: K responses in a group; the tournament of a group has an arrow from i to j if the score of i over j is
positive. Groups with a score that is not finite are left out and counted.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openrlhf_gpm import core
from openrlhf_gpm.core.quantiles import LEVELS

SELECTORS = ("mean score", "Borda", "Copeland", "von Neumann")
SHARE_TOLERANCE = 1e-3  # the von Neumann winner is computed iteratively; equal shares differ by less
TOLERANCE = 1e-5  # rounding of fp32 sums, relative to the largest value of the group


def group_metrics(scores: Iterable[NDArray[Any]]) -> dict[str, Any] | None:
    """Cycles and selectors over matrices of scores (K, K); None if no group has three responses.

    Returns:
        groups: number with three or more responses; smaller: with one or two; nan: left out, a score is not finite.
        cyclic_share: mean and quantiles of the part of the scores that no scalar reward can express, in [0, 1].
        shares: that part of each group, in order.
        cycle_rate: share of groups whose tournament has a 3-cycle.
        no_condorcet_winner: share of groups in which no response beats all others.
        selectors: see `selector_agreement`.
    """
    large, smaller, nan = [], 0, 0
    for matrix in scores:
        finite = bool(np.isfinite(matrix).all())
        nan += not finite
        smaller += finite and len(matrix) < 3
        if finite and len(matrix) >= 3:
            large.append(np.asarray(matrix))
    if not large:
        return None
    shares, cycles, winners = np.empty(len(large)), np.empty(len(large)), np.empty(len(large))
    agreement = np.zeros((len(SELECTORS), len(SELECTORS)))
    single = np.zeros(len(SELECTORS))
    for size in sorted({len(matrix) for matrix in large}):
        rows = [i for i, matrix in enumerate(large) if len(matrix) == size]
        stacked = torch.from_numpy(np.stack([large[i] for i in rows])).double()  # (G, K, K)
        shares[rows] = core.cyclic_share(stacked).numpy()
        cycles[rows] = has_cycle(stacked).numpy()
        winners[rows] = ((stacked > 0).sum(-1) == size - 1).any(-1).numpy()
        best = best_responses(stacked)  # (S, G, K)
        agreement += selector_agreement(best).sum(-1).numpy()
        single += (best.sum(-1) == 1).sum(-1).numpy()
    levels = np.quantile(shares, LEVELS)
    quantiles = {f"q{round(100 * q):02d}": float(v) for q, v in zip(LEVELS, levels, strict=True)}
    return {
        "groups": len(large),
        "smaller": smaller,
        "nan": nan,
        "cyclic_share": {"mean": float(shares.mean()), **quantiles},
        "shares": shares.tolist(),
        "cycle_rate": float(cycles.mean()),
        "no_condorcet_winner": float(1 - winners.mean()),
        "selectors": {
            "names": list(SELECTORS),
            "agreement": (agreement / len(large)).tolist(),
            "single_best": (single / len(large)).tolist(),
        },
    }


def has_cycle(scores: Tensor) -> Tensor:
    """Whether some i beats j, j beats k and k beats i: (..., K, K) -> (...) bool. A tie is not an arrow."""
    beats = (scores > 0).double()
    return (torch.matmul(torch.matmul(beats, beats), beats).diagonal(dim1=-2, dim2=-1) > 0).any(-1)


def best_responses(scores: Tensor) -> Tensor:
    """The best responses by each selector: (..., K, K) -> (4, ..., K) bool, more than one in a tie.

    Mean score: eq. 5.6. Borda: win rate, the mean probability. Copeland: responses beaten, a tie counts half. Von
    Neumann: share in the mixture that no response beats.
    """
    copeland = (scores.sign() + 1).sum(-1) / 2
    values = (core.mean_scores(scores), core.win_rates(scores), copeland, core.von_neumann_winner(scores))
    slack = (TOLERANCE, TOLERANCE, 0.0, SHARE_TOLERANCE)
    tied = []
    for value, tolerance in zip(values, slack, strict=True):
        top = value.amax(-1, keepdim=True)
        scale = value.abs().amax(-1, keepdim=True)
        tied.append(value >= top - tolerance * scale)
    return torch.stack(tied)


def selector_agreement(best: Tensor) -> Tensor:
    """How far two of S selectors agree on the best response: (S, G, K) bool -> (S, S, G) in [0, 1].

    1 for the same response, 0 for different ones; for tied sets, the share of their union that both name.
    """
    a, b = best.unsqueeze(1), best.unsqueeze(0)
    return (a & b).sum(-1).double() / (a | b).sum(-1)
