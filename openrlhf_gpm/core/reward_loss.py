"""Losses that train a preference model on pairs (arXiv 2410.02197, A.3).

`score` is the log-odds that the chosen response beats the rejected one, already divided by tau. A Bradley-Terry model
uses the same code with score = (r_chosen - r_rejected) / tau.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from openrlhf_gpm.core.preference import fp32


def preference_loss(
    score: Tensor,
    label: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    margin: Tensor | float | None = None,
    tau: float | Tensor = 1.0,
) -> Tensor:
    """Cross-entropy between labels and sigmoid(score): L_CE of A.3 as a mean over pairs. (B,) -> (), nats.

    label: (B,) in [0, 1], P_D(chosen > rejected); None is the hard label 1.
    smoothing: in [0, 0.5), the probability that a label is flipped: p becomes (1 - smoothing) p + smoothing (1 - p).
    margin: (B,) or a number in raw score units, subtracted before the division by tau (which `score` has behind it).
    Raises ValueError for shapes that differ (broadcasting would pair every row with every label) or a bad smoothing.
    """
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"--gpm.label_smoothing must be at least 0 and below 0.5, got {smoothing}")
    score = fp32(score)
    target = torch.ones_like(score) if label is None else _aligned(label, score, "label")
    target = (1 - smoothing) * target + smoothing * (1 - target)
    if margin is not None:
        score = score - (_aligned(margin, score, "margin") if isinstance(margin, Tensor) else margin) / tau
    return -(target * F.logsigmoid(score) + (1 - target) * F.logsigmoid(-score)).mean()


def score_regression_loss(score: Tensor, target: Tensor) -> Tensor:
    """Mean squared error to given log-odds s_D, sigmoid(s_D) = P_D: L_MSE of A.3. (B,), (B,) -> (), nats squared.

    Raises ValueError for shapes that differ.
    """
    score = fp32(score)
    return (score - _aligned(target, score, "target")).square().mean()


def _aligned(x: Tensor, score: Tensor, name: str) -> Tensor:
    if x.shape != score.shape:
        raise ValueError(f"{name} must have one value a pair, shape {tuple(score.shape)}, got {tuple(x.shape)}")
    return x.to(score)
