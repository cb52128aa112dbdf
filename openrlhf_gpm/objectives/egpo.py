"""Extragradient preference optimization (arXiv 2503.08942): its last policy converges, without a magnet.

    odd steps    moved -> (P_hat - 1/2) / beta                       a look ahead
    even steps   moved -> (P_hat - 1/2) / beta - drift[iteration]    back at the step before, with the look's win rates

P_hat: win rate against the opponent; 1 / beta is the paper's eta. With --gpo.pull and --gpo.magnet ref both steps are
those of its KL-regularised game, and --gpo.pull is the paper's eta beta.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from openrlhf_gpm.objectives.magnet import Magnetic
from openrlhf_gpm.objectives.regression import ByWinRate


@dataclass(frozen=True, kw_only=True)
class EGPO(ByWinRate, Magnetic):
    """Every second step starts where the one before it did. A run should end on an even step."""

    iteration_every: ClassVar[int | None] = 2

    @property
    def pulls(self) -> Mapping[str, float]:
        """What the magnet leaves, to where the look ahead began."""
        magnet = super().pulls
        return {**magnet, "iteration": magnet.get("iteration", 0.0) + 1 - sum(magnet.values())}


OBJECTIVE = EGPO
