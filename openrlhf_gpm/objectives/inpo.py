"""Iterative Nash policy optimization (arXiv 2407.00617).

    moved_1 - moved_2 -> (P_hat_1 - P_hat_2) / beta - ref_pull (drift_1 - drift_2)

P_hat: win rate against the opponent; drift: from the start of the run, `ref`. In the paper's letters beta is eta and
ref_pull is tau / eta. The paper's loss labels a pair by a draw, +-1 / (2 eta); its mean over pairs has this gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.pairs import PairLoss
from openrlhf_gpm.objectives.regression import ByWinRate, Regression


@dataclass(frozen=True, kw_only=True)
class INPO(ByWinRate, PairLoss, Regression):
    """Mirror descent in pairs, held by the start of the run. Raises ValueError that names the flag."""

    ref_pull: float = flag(0.1, "pull of `ref`, the start of the run, per step, 0 to 1; tau / eta in its paper")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ref_pull <= 1:
            raise ValueError(f"--gpo.ref_pull must be from 0 to 1, got {self.ref_pull}")

    @property
    def pulls(self) -> Mapping[str, float]:
        """The reference's, always: it is what the method adds."""
        return {"ref": self.ref_pull}


OBJECTIVE = INPO
