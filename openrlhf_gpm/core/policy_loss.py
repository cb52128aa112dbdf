"""Targets and loss of General Preference Optimization and SPPO (arXiv 2410.02197, section 5.2; SPPO arXiv 2405.00675).

Both regress the log-ratio of a whole response, log pi_theta(y) - log pi_t(y) in nats, on a target computed from the
scores of its group. pi_t is the frozen opponent that sampled the group. (arXiv 2402.05749 is another GPO.)
"""

import math

import torch
from torch import Tensor

from openrlhf_gpm.core.preference import fp32, group_probs, mean_over_opponents, mean_scores, require_square


def gpo_target(
    scores: Tensor,
    beta: float,
    *,
    baseline: str = "zero",
    include_self: bool = False,
    clip: float | None = None,
) -> Tensor:
    """(s_hat - b) / beta, the log-ratio that eq. 5.7 asks for: (..., K, K) scores -> (..., K) nats.

    baseline: "zero" (b = 0, as in the paper's experiments: the group mean of s_hat is 0 already) or "log_z", the group
    estimate of log Z = log E exp(s_hat) under pi_t. include_self: s_hat with the paper's 1/K (eq. 5.6).
    clip: limit of |target| in nats, None for no limit.
    Raises ValueError for a group of one, beta <= 0, clip <= 0 or an unknown baseline.
    """
    if baseline not in ("zero", "log_z"):
        raise ValueError(f"--gpo.baseline must be 'zero' or 'log_z', got {baseline!r}")
    _check(scores, beta, clip)
    s_hat = mean_scores(scores, include_self)
    if baseline == "log_z":
        s_hat = s_hat - (torch.logsumexp(s_hat, -1, keepdim=True) - math.log(s_hat.shape[-1]))
    return _scaled(s_hat, beta, clip)


def sppo_target(
    scores: Tensor,
    beta: float,
    *,
    include_self: bool = False,
    hard: bool = False,
    clip: float | None = None,
) -> Tensor:
    """(P_hat - 1/2) / beta, the log-ratio that SPPO asks for: (..., K, K) scores -> (..., K) nats.

    P_hat is the win rate against the group; `hard` counts wins instead (1 for a positive score, 1/2 for a tie).
    include_self and clip as in `gpo_target`. Raises ValueError for a group of one, beta <= 0 or clip <= 0.
    """
    _check(scores, beta, clip)
    probs = group_probs(scores)
    if hard:
        probs = torch.where(scores.isnan(), probs, (1 + torch.sign(fp32(scores))) / 2)  # sign(NaN) is 0: not a tie
    return _scaled(mean_over_opponents(probs, include_self) - 0.5, beta, clip)


def best_worst_mask(values: Tensor) -> Tensor:
    """1.0 at the best and at the worst response of each group, 0.0 elsewhere: (..., K) -> (..., K).

    Among equals the first is the best and the last is the worst, so a group of two or more always keeps two.
    """
    best = values.argmax(-1, keepdim=True)
    worst = values.shape[-1] - 1 - values.flip(-1).argmin(-1, keepdim=True)
    return torch.zeros_like(fp32(values)).scatter(-1, torch.cat([best, worst], -1), 1.0)


def policy_regression_loss(log_ratio: Tensor, target: Tensor) -> Tensor:
    """Squared error of each response, eq. 5.7 before the mean: (B,), (B,) nats -> (B,) nats squared.

    log_ratio = sum_t log pi_theta - sum_t log pi_t over the tokens of the response. Raises ValueError for shapes that
    differ.
    """
    if log_ratio.shape != target.shape:
        raise ValueError(
            f"one target a response: log_ratio has shape {tuple(log_ratio.shape)}, target {tuple(target.shape)}"
        )
    return (fp32(log_ratio) - fp32(target)).square()


def _check(scores: Tensor, beta: float, clip: float | None) -> None:
    require_square(scores, "scores")
    if scores.shape[-1] < 2:
        raise ValueError("a group needs at least 2 responses to compare; raise --rollout.n_samples_per_prompt")
    if not beta > 0:
        raise ValueError(f"--gpo.beta must be > 0, got {beta}")
    if clip is not None and not clip > 0:
        raise ValueError(f"--gpo.target_clip must be > 0 nats, got {clip}; leave it out for no clipping")


def _scaled(advantage: Tensor, beta: float, clip: float | None) -> Tensor:
    target = advantage / beta
    return target if clip is None else target.clamp(-clip, clip)
