"""What gpo and sppo share: the log-ratio of a whole response is regressed on a target (arXiv 2410.02197, eq. 5.7).

loss = (moved - target)^2        target = value / beta - pull drift
value: a response's standing against the opponent, less a baseline

The drift is that from the magnet, a frozen policy. Without a pull this is the published objective, of which only the
average policy converges when preferences are cyclic. A pull towards an average of past policies makes the last policy
converge (magnetic mirror descent, arXiv 2206.05825).
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

SMALLEST_BETA = 1e-30
"""Below it targets leave the range of fp32."""


@dataclass(frozen=True, kw_only=True)
class Regression(Objective):
    """Squared error between `moved` and `target`, in nats. Raises ValueError that names the flag."""

    prefix: ClassVar[str] = "gpo"
    beta: float = flag(1.0, "1 / beta is the size of a step; the paper's scripts use 0.001, see docs/paper-vs-code.md")
    include_self: bool = flag(False, "average over all K responses, the paper's 1/K, instead of the other K - 1")
    target_clip: float | None = flag(None, "clip targets to this many nats on either side", type=float, metavar="NATS")
    pull: float = flag(0.0, "pull of the magnet per step, 0 to 1: 0.1 to 0.3 let the last policy converge; 0: none")
    magnet: str = flag(
        "ema",
        "the frozen policy that pulls: an average of past policies, a copy of every --frozen.iteration_every steps, "
        "or the start of the run",
        choices=["ema", "iteration", "ref"],
    )
    save_magnet: bool = flag(False, "also save the magnet, to --ckpt.output_dir/magnet")
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
        if not 0 <= self.pull <= 1:
            raise ValueError(f"--gpo.pull must be from 0 to 1, got {self.pull}: above 1 a step goes past the magnet")
        if self.save_magnet and not self.pull:
            raise ValueError("--gpo.save_magnet has no magnet to save: set --gpo.pull")

    @property
    def needs(self) -> tuple[str, ...]:
        """The magnet, where it pulls."""
        return (self.magnet,) if self.pull else ()

    @property
    def saved(self) -> tuple[str, ...]:
        """The magnet, with --gpo.save_magnet."""
        return (self.magnet,) if self.save_magnet else ()

    def value(self, groups: Groups) -> Tensor:
        """(G, K): what a response is worth, less the baseline."""
        raise NotImplementedError

    def select(self, groups: Groups) -> Tensor:
        """All K, or the best and the worst by `reward`."""
        return super().select(groups) if self.responses == "all" else best_and_worst(self.reward(groups))

    def prepare(self, groups: Groups) -> dict[str, Tensor]:
        """`target`, in nats."""
        target = self.value(groups) / self.beta
        if self.pull:
            target = target - self.pull * groups.drift[self.magnet]
        return {"target": target if self.target_clip is None else target.clamp(-self.target_clip, self.target_clip)}

    def loss(self, moved: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Squared error in nats squared."""
        target = given["target"]
        if moved.shape != target.shape:
            raise ValueError(f"one target per response: got {tuple(target.shape)} for {tuple(moved.shape)} log-ratios")
        return (fp32(moved) - fp32(target)).square()


def best_and_worst(values: Tensor) -> Tensor:
    """Indices of the best and the worst response of each group: (G, K) -> (G, 2).

    Among equals the first is the best and the last is the worst, so a group of two or more always gives two.
    """
    worst = values.shape[-1] - 1 - values.flip(-1).argmin(-1)
    return torch.stack([values.argmax(-1), worst], -1)
