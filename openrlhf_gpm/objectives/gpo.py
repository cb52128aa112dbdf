"""General Preference Optimization (arXiv 2410.02197, eq. 5.7). Another method, arXiv 2402.05749, has the same letters.

moved -> (s_hat - b) / beta        s_hat: mean score against the opponent, eq. 5.6
"""

import math
from dataclasses import dataclass

from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.magnet import Magnetic
from openrlhf_gpm.objectives.regression import less_mean


@dataclass(frozen=True, kw_only=True)
class GPO(Magnetic):
    """A response is worth its mean score, in log-odds."""

    baseline: str = flag(
        "zero", "b in place of log Z; log_z: the group's log-mean-exp of the mean scores", choices=["zero", "log_z"]
    )

    def value(self, groups: Groups) -> Tensor:
        """s_hat - b."""
        s_hat = groups.mean_score(self.include_self)
        if self.baseline == "zero":
            return less_mean(s_hat, groups)
        return s_hat - (s_hat.logsumexp(-1, keepdim=True) - math.log(s_hat.shape[-1]))


OBJECTIVE = GPO
