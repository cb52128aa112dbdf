"""A magnet: a frozen policy that a regression is pulled to (magnetic mirror descent, arXiv 2206.05825).

Without a pull, only the average policy of self-play converges when preferences are cyclic. A pull towards an average
of past policies makes the last policy converge.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.regression import Regression


@dataclass(frozen=True, kw_only=True)
class Magnetic(Regression):
    """A regression with a magnet of the user's choice, or none. Raises ValueError that names the flag."""

    pull: float = flag(0.0, "pull of the magnet per step, 0 to 1: 0.1 to 0.3 let the last policy converge; 0: none")
    magnet: str = flag(
        "ema",
        "the frozen policy that pulls: an average of past policies, a copy of every --frozen.iteration_every steps, "
        "or the start of the run",
        choices=["ema", "iteration", "ref"],
    )
    save_magnet: bool = flag(False, "also save the magnet, to --ckpt.output_dir/magnet")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pull <= 1:
            raise ValueError(f"--gpo.pull must be from 0 to 1, got {self.pull}: above 1 a step goes past the magnet")
        if self.save_magnet and not self.pull:
            raise ValueError("--gpo.save_magnet has no magnet to save: set --gpo.pull")

    @property
    def pulls(self) -> Mapping[str, float]:
        """The magnet's."""
        return {self.magnet: self.pull} if self.pull else {}

    @property
    def saved(self) -> tuple[str, ...]:
        """The magnet, with --gpo.save_magnet."""
        return (self.magnet,) if self.save_magnet else ()
