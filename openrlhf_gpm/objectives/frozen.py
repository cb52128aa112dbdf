"""Frozen policies: earlier states of the policy that an objective measures it against.

ref        the start of the run, which never changes
iteration  a copy, taken every --frozen.iteration_every steps
ema        an average of the weights: ema <- decay ema + (1 - decay) theta after each step

A step is one rollout batch. All three are the start of the run until the first step is done.
"""

from argparse import ArgumentParser
from collections.abc import Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

from openrlhf_gpm.flags import add_flags, flag, flag_fields, given_flags, read_flags

POLICIES = ("ref", "iteration", "ema")


@dataclass(frozen=True, kw_only=True)
class FrozenRules:
    """How frozen policies follow the policy. Raises ValueError that names the flag."""

    prefix: ClassVar[str] = "frozen"
    ema_decay: float = flag(0.9, "ema: share of the average that a step keeps, 0 to 1")
    iteration_every: int = flag(0, "iteration: steps between copies", shown="0: the start of the pass")
    ref: str | None = flag(
        None, "ref: the model that it is", type=str, metavar="DIR", shown="the start, --actor.model_name_or_path"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--frozen.ema_decay must be at least 0 and less than 1, got {self.ema_decay}")
        if self.iteration_every < 0:
            raise ValueError(f"--frozen.iteration_every must be at least 0, got {self.iteration_every}")

    def share(self, name: str, step: int, every: int | None = None) -> float:
        """How much of the policy goes into the frozen policy `name` after `step` (from 1): 0 none, 1 a copy.

        every: `Objective.iteration_every`.
        """
        every = self.iteration_every if every is None else every
        shares = {"ref": 0.0, "iteration": float(every > 0 and step % every == 0), "ema": 1 - self.ema_decay}
        return shares[name]


def from_args(args: SimpleNamespace) -> FrozenRules:
    """The rules that parsed arguments ask for."""
    return FrozenRules(**read_flags(args, FrozenRules.prefix, flag_fields(FrozenRules)))


def add_frozen_flags(parser: ArgumentParser) -> None:
    """Declare --frozen.*."""
    group = parser.add_argument_group("frozen policies", "Read by objectives with a magnet or a reference.")
    add_flags(group, FrozenRules.prefix, flag_fields(FrozenRules))


def unread_flags(args: SimpleNamespace, needs: Collection[str], every: int | None = None) -> list[str]:
    """The given --frozen.* that no frozen policy of `needs` reads. every: `Objective.iteration_every`."""
    read = {"--frozen.ema_decay": "ema" in needs, "--frozen.ref": "ref" in needs}
    read["--frozen.iteration_every"] = "iteration" in needs and every is None
    return [name for name in given_flags(args, FrozenRules.prefix, flag_fields(FrozenRules)) if not read[name]]
