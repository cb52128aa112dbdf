"""Nash mirror descent by policy gradient, Nash-MD-PG (arXiv 2312.00886).

    -(P_hat - 1/2) moved + beta / 2 (moved + drift[ref])^2        beta is the paper's tau

P_hat: win rate against pi_t^(1 - a) pi_ref^a, which the group's own answers stand for by importance weights; a is
--nash_md.mixture, the paper's beta. At moved = 0 the gradient is the paper's: of log pi_theta, weighted with
beta log(pi_t / pi_ref) - (P_hat - 1/2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.core.preference import fp32
from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.against import mixture
from openrlhf_gpm.objectives.objective import Objective


@dataclass(frozen=True, kw_only=True)
class NashMD(Objective):
    """A policy gradient, so use one epoch per rollout batch. Raises ValueError that names the flag."""

    prefix: ClassVar[str] = "nash_md"
    own_opponent: ClassVar[bool] = True
    beta: float = flag(0.05, "strength of the pull to `ref`, the start of the run: a penalty of beta nats per nat")
    mixture: float = flag(0.125, "share of `ref` in the opponent, a geometric mixture with the policy, 0 to 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"--nash_md.beta must be at least 0 and finite, got {self.beta}")
        if not 0 <= self.mixture <= 1:
            raise ValueError(f"--nash_md.mixture must be from 0 to 1, got {self.mixture}")

    @property
    def needs(self) -> tuple[str, ...]:
        """The reference."""
        return ("ref",)

    def reward(self, groups: Groups) -> Tensor:
        """The win rate against the group."""
        return groups.win_rate()

    def prepare(self, groups: Groups) -> dict[str, Tensor]:
        """`advantage` in [-1/2, 1/2], `drift_ref` in nats, and `opponent_size`, how many answers the opponent is."""
        drift = groups.drift["ref"]
        mixed, size = mixture(groups, drift, self.mixture)
        return {"advantage": mixed.win_rate() - 0.5, "drift_ref": drift, "opponent_size": size}

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """In nats."""
        moved = fp32(moved)
        return self.beta / 2 * (moved + given["drift_ref"]).square() - given["advantage"] * moved


OBJECTIVE = NashMD
