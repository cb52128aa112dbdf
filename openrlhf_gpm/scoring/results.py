"""From the embeddings of a group to what `openrlhf-gpm score` writes about it (arXiv:2410.02197, section 4)."""

from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm import core


def group_result(v: Tensor, gate: Tensor | None, tau: float) -> dict[str, Any]:
    """What `openrlhf-gpm score` writes about a group, except its id: plain lists and floats.

    v: (K, 2k); gate: (k,) of the prompt, or None without a gate. Scores are log-odds, i over j in row i; see
    `scores_result` for numbers that are not finite.
    """
    embeddings = {"embeddings": v.tolist(), "gate": None if gate is None else gate.tolist()}
    return embeddings | scores_result(core.group_scores(v, gate, tau))


def pairwise_result(rewards: Tensor, size: int, tau: float) -> dict[str, Any]:
    """`group_result` for head "pairwise", which has no embeddings.

    rewards: (K(K - 1),), r(x, i, j) for i != j in row order; size: K. Both orders of a pair count:
    score(i > j) = (r(x, i, j) - r(x, j, i)) / tau.
    """
    r = rewards.new_zeros(size, size)
    r[~torch.eye(size, dtype=torch.bool)] = rewards
    return {"embeddings": None, "gate": None} | scores_result((r - r.mT) / tau)


def is_finite(result: dict[str, Any]) -> bool:
    """Whether all scores of a result are numbers."""
    return result["mean_scores"] is not None


def scores_result(scores: Tensor) -> dict[str, Any]:
    """(K, K) log-odds -> scores, probs, and what follows from the whole matrix: None unless all are finite."""
    finite = bool(torch.isfinite(scores).all())
    mean = core.mean_scores(scores).tolist() if finite else None
    return {
        "scores": scores.tolist(),
        "probs": core.group_probs(scores).tolist(),
        "mean_scores": mean,
        "win_rates": core.win_rates(scores).tolist() if finite else None,
        "ranking": sorted(range(len(mean)), key=lambda i: -mean[i]) if mean is not None else None,  # ties by index
        "von_neumann": core.von_neumann_winner(scores).tolist() if finite else None,
        "cyclic_share": float(core.cyclic_share(scores)) if finite else None,
    }
