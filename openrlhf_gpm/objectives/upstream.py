"""OpenRLHF's own losses (ppo, gspo) and advantage estimators on preferences (arXiv 2410.02197, remark 5.2).

reward of a response = its mean score, or its win rate, against the opponent
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Upstream(Objective):
    """OpenRLHF's estimator and loss, with our reward."""

    prefix: ClassVar[str] = "gpm"
    own_loss: ClassVar[bool] = False
    reads_win_rates: ClassVar[bool] = True
    by: str = flag(
        "score",
        "reward of a response for OpenRLHF's losses: its mean score (log-odds) or its win rate against its group",
        name="reward",
        choices=["score", "win_rate"],
    )

    def reward(self, groups: Groups) -> Tensor:
        """The mean score, or the win rate."""
        return groups.win_rate() if self.by == "win_rate" else groups.mean_score()
