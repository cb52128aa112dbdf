"""What objectives of pairs share: which two responses of a group meet, and their loss (REBEL's, DPO's and IPO's form).

A pair is two neighbours of `select`. Only differences within a pair count, so log Z and any baseline cancel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.core.preference import fp32
from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.objective import Objective


def best_and_worst(values: Tensor) -> Tensor:
    """Indices of the best and the worst response of each group: (G, K) -> (G, 2).

    Among equals the first is the best and the last is the worst, so a group of two or more always gives two.
    """
    worst = values.shape[-1] - 1 - values.flip(-1).argmin(-1)
    return torch.stack([values.argmax(-1), worst], -1)


def first_less_second(values: Tensor) -> Tensor:
    """The difference within each pair: (B, 2) -> (B,), fp32."""
    first, second = fp32(values).unbind(-1)
    return first - second


class PairLoss:
    """Mixed into a regression: the difference of two responses is regressed, not each of them."""

    together: ClassVar[int] = 2

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """(B, 2) -> (B,): squared error of the difference, in nats squared."""
        return (first_less_second(moved) - first_less_second(given["target"])).square()


@dataclass(frozen=True, kw_only=True)
class ReferencePairs(Objective):
    """The best and the worst response of each group, in this order, measured against the start of the run, `ref`.

    Raises ValueError that names the flag.
    """

    prefix: ClassVar[str] = "dpo"
    together: ClassVar[int] = 2
    beta: float = flag(0.1, "how strongly `ref`, the start of the run, holds the policy; tau in the paper of IPO")
    soft: bool = flag(
        False, "label a pair with the judge's probability that the best beats the worst, instead of with 1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise ValueError(f"--{self.prefix}.beta must be > 0 and finite, got {self.beta}")

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference."""
        return ("ref",)

    def select(self, groups: Groups) -> Tensor:
        """The best and the worst by mean score."""
        return best_and_worst(self.reward(groups))

    def prepare(self, groups: Groups) -> dict[str, Tensor]:
        """`drift_ref` in nats, and `label`, the same for all of a group: 1, or P(best beats worst)."""
        drift = groups.drift["ref"]
        label = torch.ones_like(drift)
        if self.soft:
            best, worst = self.select(groups).unbind(-1)
            group = torch.arange(len(best), device=best.device)
            label = label * fp32(groups.scores[group, best, worst]).sigmoid().unsqueeze(-1)
        return {"drift_ref": drift, "label": label}

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """`margin_loss` of h = log pi_theta - log pi_ref of the best, less that of the worst."""
        return self.margin_loss(first_less_second(moved + given["drift_ref"]), fp32(given["label"])[..., 0])

    def margin_loss(self, margin: Tensor, label: Tensor) -> Tensor:
        """(B,) nats and (B,) in [0, 1] -> (B,)."""
        raise NotImplementedError
