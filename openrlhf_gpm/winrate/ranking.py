"""The ranking that comes closest to a win matrix: Bradley-Terry strengths, on the scale of Elo.

Notation: P policies, "..." any leading dims. A strength is a log-odds: P(i beats j) = sigmoid(r_i - r_j).
"""

import math

import torch
from torch import Tensor

from openrlhf_gpm.core import bt_scores, group_probs

MAX_STEPS = 200  # 10 are usual; win rates of 0 or 1 have strengths without end and take about 30
LONGEST = 2.0
"""Nats that a strength moves per step: a Newton step from afar may be too long."""

ELO = 400 / math.log(10)
MEAN_ELO = 1000.0


def bradley_terry(rates: Tensor) -> Tensor:
    """Strengths of largest likelihood, all pairs counting alike: (..., P, P) win rates -> (..., P) nats, mean 0.

    rates[i, j] + rates[j, i] is 1, up to rounding. The strengths solve sum_j rates_ij = sum_j sigmoid(r_i - r_j) for
    every i.
    """
    rates = (rates.double() + 1 - rates.double().mT) / 2  # what fp32 rounds would have no solution
    strengths = torch.zeros_like(rates[..., 0])
    for _ in range(MAX_STEPS):
        predicted = group_probs(bt_scores(strengths))
        gradient = (rates - predicted).sum(-1)  # (..., P)
        if bool((gradient.abs() < 1e-10).all()):
            return strengths - strengths.mean(-1, keepdim=True)
        curvature = predicted * predicted.mT
        curvature = curvature - torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1))
        laplacian = torch.diag_embed(curvature.sum(-1)) - curvature
        # Strengths are known up to a constant: a matrix of equal entries takes that direction out of the way.
        level = curvature.sum((-2, -1), keepdim=True) / rates.shape[-1] ** 2
        step = torch.linalg.solve(laplacian + level, gradient)
        longest = step.abs().amax(-1, keepdim=True)
        strengths = strengths + step * (LONGEST / longest).clamp(max=1.0)
    raise AssertionError(f"Bradley-Terry did not converge in {MAX_STEPS} steps")


def elo(strengths: Tensor) -> Tensor:
    """Elo ratings, mean 1000: 400 points are odds of 10. Any shape -> the same shape."""
    return MEAN_ELO + ELO * strengths
