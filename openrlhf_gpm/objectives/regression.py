"""The log-ratio of a response is regressed on a target (arXiv 2410.02197, eq. 5.7).

loss = (moved - target)^2        target = value / beta - sum of pull drift
value: a response's standing against the opponent, less a baseline

The sum is over the frozen policies that pull. Without one this is the published objective, of which only the average
policy converges when preferences are cyclic (`magnet.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.core.preference import fp32
from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.objective import Objective
from openrlhf_gpm.objectives.pairs import best_and_worst

SMALLEST_BETA = 1e-30
"""Below it targets leave the range of fp32."""


@dataclass(frozen=True, kw_only=True)
class Regression(Objective):
    """Squared error between `moved` and `target`, in nats. Raises ValueError that names the flag."""

    prefix: ClassVar[str] = "gpo"
    beta: float = flag(1.0, "1 / beta is the size of a step; the paper's scripts use 0.001, see docs/paper-vs-code.md")
    include_self: bool = flag(False, "average over all K responses, the paper's 1/K, instead of the other K - 1")
    target_clip: float | None = flag(None, "clip targets to this many nats on either side", type=float, metavar="NATS")
    responses: str = flag(
        "all", "train on all K responses, or on the best and the worst of each group", choices=["all", "best_worst"]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not SMALLEST_BETA < self.beta < math.inf:
            raise ValueError(f"--gpo.beta must be at least {SMALLEST_BETA} and finite, got {self.beta}")
        if self.target_clip is not None and not 0 < self.target_clip < math.inf:
            raise ValueError(
                f"--gpo.target_clip must be > 0 and finite, in nats, got {self.target_clip}; leave it out not to clip"
            )

    @property
    def pulls(self) -> Mapping[str, float]:
        """Frozen policy -> its pull, the share of its drift that a step takes back, in [0, 1]. Here, none pulls."""
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """Those that pull."""
        return tuple(name for name, pull in self.pulls.items() if pull)

    def value(self, groups: Groups) -> Tensor:
        """(G, K): what a response is worth, less the baseline."""
        raise NotImplementedError

    def select(self, groups: Groups) -> Tensor:
        """All K, or the best and the worst by `reward`."""
        return super().select(groups) if self.responses == "all" else best_and_worst(self.reward(groups))

    def prepare(self, groups: Groups) -> dict[str, Tensor]:
        """`target`, in nats."""
        target = self.value(groups) / self.beta
        for name in self.needs:
            target = target - self.pulls[name] * groups.drift[name]
        return {"target": target if self.target_clip is None else target.clamp(-self.target_clip, self.target_clip)}

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Squared error in nats squared."""
        target = given["target"]
        if moved.shape != target.shape:
            raise ValueError(f"one target per response: got {tuple(target.shape)} for {tuple(moved.shape)} log-ratios")
        return (fp32(moved) - fp32(target)).square()


class ByWinRate:
    """Mixed into a regression: a response is worth its win rate less 1/2."""

    reads_win_rates: ClassVar[bool] = True
    include_self: bool

    def reward(self, groups: Groups) -> Tensor:
        """The win rate."""
        return groups.win_rate()

    def value(self, groups: Groups) -> Tensor:
        """P_hat - 1/2."""
        return less_mean(groups.win_rate(include_self=self.include_self) - 0.5, groups)


def less_mean(values: Tensor, groups: Groups) -> Tensor:
    """(G, K) values, less the mean of their group where the opponent is another than the group.

    The mean stands for log Z in eq. 5.7. Against the group itself it is 0 already, by skew symmetry.
    """
    return values if groups.against is None else values - values.mean(-1, keepdim=True)
