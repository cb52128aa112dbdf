"""REBEL: regression to relative rewards (arXiv 2404.16767).

    moved_1 - moved_2 -> (s_hat_1 - s_hat_2) / beta        s_hat: mean score against the opponent; 1 / beta: its eta

The paper's extension to general preferences takes the mean preference over fresh answers as the reward, as here.
"""

from dataclasses import dataclass

from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.objectives.magnet import Magnetic
from openrlhf_gpm.objectives.pairs import PairLoss


@dataclass(frozen=True, kw_only=True)
class REBEL(PairLoss, Magnetic):
    """Of two responses only the difference is trained: no baseline, no log Z."""

    def value(self, groups: Groups) -> Tensor:
        """s_hat."""
        return groups.mean_score(self.include_self)


OBJECTIVE = REBEL
