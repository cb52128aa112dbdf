"""Other opponents than the rest of a group."""

import torch
from torch import Tensor

from openrlhf_gpm.core import Groups

FEWEST = 2.0
"""Effective answers below which importance weights say more of chance than of the opponent."""


def mixture(groups: Groups, drift: Tensor, share: float) -> tuple[Groups, Tensor]:
    """Groups whose opponent is pi_t^(1 - share) pi_f^share, by importance weights; and the effective sample size.

    The policy pi_f is given by its drift, log pi_t - log pi_f: (G, K) nats. The weights of a response's opponents are
    multiplied by exp(-share drift) of theirs and sum to 1 again. Effective sample size: (G, K), 1 / (sum of squared
    weights), at most the number of opponents. A sampled group where its mean is below `FEWEST` keeps its own weights.
    The opponent so far must be the group itself, sampled (no weights) or by the policy's probabilities (weights).
    """
    own = groups.scores
    others = 1 - torch.eye(own.shape[-1], dtype=drift.dtype, device=drift.device)
    plain = (others / others.sum(-1) if groups.weights is None else groups.weights).expand(own.shape)
    weights = (plain.log() - share * drift.unsqueeze(-2)).softmax(-1)
    size = 1 / weights.square().sum(-1)
    if groups.weights is None:
        weights = torch.where((size.mean(-1) < FEWEST)[:, None, None], plain, weights)
    return Groups(own, against=own, weights=weights, drift=groups.drift), size
