"""Groups against other opponents than themselves: by importance weights, or by embeddings of other answers."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from openrlhf_gpm.core import Groups, group_probs, group_scores, von_neumann_winner

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
    plain = (others(own, drift.dtype) if groups.weights is None else groups.weights).expand(own.shape)
    weights = (plain.log() - share * drift.unsqueeze(-2)).softmax(-1)
    size = 1 / weights.square().sum(-1)
    if groups.weights is None:
        weights = torch.where(too_few(size)[:, None, None], plain, weights)
    return Groups(own, against=own, weights=weights, drift=groups.drift), size


def too_few(size: Tensor) -> Tensor:
    """Groups whose importance weights are not used: (G, K) effective sample sizes -> (G,) bool."""
    return size.mean(-1) < FEWEST


def beside(groups: Groups, against: Tensor, weights: Tensor, share: float, means_only: bool) -> Groups:
    """Groups whose opponent is, to `share`, other answers than their own.

    against: (G, K, M) log-odds of the responses against them; weights: (G, M), summing to 1, or to 0 for a group that
    has none, whose opponent is then the group alone. means_only: as in `Groups`.
    """
    other = share * weights.unsqueeze(-2).expand(against.shape)
    own = others(groups.scores, other.dtype) * (1 - other.sum(-1, keepdim=True))
    return Groups(
        groups.scores,
        against=torch.cat([groups.scores, against], -1),
        weights=torch.cat([own, other], -1),
        means_only=means_only,
        drift=groups.drift,
    )


def others(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """(G, K, K) -> (K, K): equal weights of the other K - 1 responses."""
    K = scores.shape[-1]
    return (1 - torch.eye(K, dtype=dtype, device=scores.device)) / (K - 1)


def unbeaten_mixture(answers: list[tuple[Tensor, Tensor, Tensor]], policies: int) -> tuple[Tensor, Tensor]:
    """The von Neumann mixture of policies, (P,), and their mean win rates, (P, P).

    answers: per prompt the embeddings (M, 2k) of all policies' answers, the gate / tau (k,), and whose they are (M,).
    Every policy must have an answer to every prompt; prompts count equally, and so do the answers of a policy to one.
    """
    total = torch.zeros(policies, policies, dtype=torch.float64)
    for embeddings, gate_over_tau, owner in answers:
        of = one_hot(owner, policies).double()
        mean = (of / of.sum(0)).T  # (P, M)
        total += mean @ group_probs(group_scores(embeddings, gate_over_tau)).double() @ mean.T
    rates = total / len(answers)
    scores = torch.logit(rates)
    return von_neumann_winner((scores - scores.T) / 2), rates
