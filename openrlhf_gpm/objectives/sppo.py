"""Self-play preference optimization (arXiv 2405.00675).

    moved -> (P_hat - 1/2) / beta        P_hat: win rate against the opponent

The paper counts wins (--gpo.hard). Its released code also trains on the best and the worst only (--gpo.responses).
"""

from dataclasses import dataclass

from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.magnet import Magnetic
from openrlhf_gpm.objectives.regression import ByWinRate, less_mean


@dataclass(frozen=True, kw_only=True)
class SPPO(ByWinRate, Magnetic):
    """A response is worth its win rate less 1/2."""

    hard: bool = flag(False, "count wins (0, 1/2, 1) instead of averaging probabilities")

    def value(self, groups: Groups) -> Tensor:
        """P_hat - 1/2, of counted wins with --gpo.hard."""
        return less_mean(groups.win_rate(self.hard, self.include_self) - 0.5, groups)


OBJECTIVE = SPPO
