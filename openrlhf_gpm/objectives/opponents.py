"""Whom the responses of a group are measured against.

group      the rest of the group: the policy itself
mixture    pi_t^(1 - a) pi_f^a, f a frozen policy: the group's own answers, by importance weights
history    answers of earlier steps and passes of the run, as the judge's embeddings of them
league     answers of other policies, the same way

Of history and league the share a of the opponent is those answers, and the rest is the group.
"""

from argparse import ArgumentParser
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch

from openrlhf_gpm.flags import add_flags, check_choices, flag, flag_fields, given_flags, read_flags
from openrlhf_gpm.objectives.frozen import POLICIES
from openrlhf_gpm.objectives.objective import Objective

FEWEST_SAMPLED = 4
"""Responses of a group below which importance weights have nothing to choose from (`against.FEWEST`)."""

KINDS = ("group", "mixture", "history", "league")


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """Which opponent. Raises ValueError that names the flag."""

    prefix: ClassVar[str] = "gpm"
    kind: str = flag(
        "group",
        "whom a response is measured against: the rest of its group, a mixture with a frozen policy, earlier answers "
        "of the run, or answers of other policies",
        name="opponent",
        choices=list(KINDS),
    )
    share: float = flag(
        0.5, "how much of the opponent is the other one and not the group, above 0 to 1", name="opponent_share"
    )
    policy: str = flag("ema", "mixture: the frozen policy", name="opponent_policy", choices=list(POLICIES))
    league: str | None = flag(
        None, "league: files of `openrlhf-gpm embed`, one per policy, with commas between", type=str, metavar="FILES"
    )
    league_weights: str = flag(
        "equal",
        "league: `equal`, one number per file with commas between, or `von_neumann`: the mixture of these policies "
        "that none of them beats",
        metavar="W,W",
    )
    history: str | None = flag(
        None,
        "history: folders with what earlier passes left, with commas between; self-play gives them",
        type=str,
        metavar="DIRS",
    )

    def __post_init__(self) -> None:
        check_choices(self, self.prefix)
        if not 0 < self.share <= 1:
            raise ValueError(f"--gpm.opponent_share must be above 0 and at most 1, got {self.share}")
        if self.kind == "league" and not self.league:
            raise ValueError("--gpm.opponent league needs --gpm.league: name files of `openrlhf-gpm embed`")
        self.weights()  # raises ValueError

    @property
    def needs(self) -> tuple[str, ...]:
        """The frozen policies (`frozen.py`) whose drift it reads."""
        return (self.policy,) if self.kind == "mixture" else ()

    def weights(self) -> list[float] | None:
        """Of the league's policies, summing to 1; None: `von_neumann`, which their answers decide."""
        count = len((self.league or "").split(","))
        if self.league_weights == "von_neumann":
            return None
        given = ["1"] * count if self.league_weights == "equal" else self.league_weights.split(",")
        try:
            weights = torch.tensor([float(each) for each in given], dtype=torch.float64)
        except ValueError:
            weights = torch.tensor([-1.0])
        if len(weights) != count or not bool((weights >= 0).all()) or not 0 < weights.sum() < torch.inf:
            raise ValueError(
                f"--gpm.league_weights {self.league_weights}: give `equal`, `von_neumann`, or {count} numbers of at "
                "least 0, one per file of --gpm.league"
            )
        return list((weights / weights.sum()).tolist())


def from_args(args: SimpleNamespace) -> Opponent:
    """The opponent that parsed arguments ask for."""
    return Opponent(**read_flags(args, Opponent.prefix, flag_fields(Opponent)))


def add_opponent_flags(parser: ArgumentParser) -> None:
    """Declare --gpm.opponent and its companions."""
    group = parser.add_argument_group("opponents", "Whom the responses of a group are measured against.")
    add_flags(group, Opponent.prefix, flag_fields(Opponent))


def given(args: SimpleNamespace) -> list[str]:
    """The given flags of opponents."""
    return given_flags(args, Opponent.prefix, flag_fields(Opponent))


def unread_flags(args: SimpleNamespace) -> list[str]:
    """The given flags of opponents that this one does not read."""
    kind = from_args(args).kind
    read = {"opponent": True, "opponent_share": kind != "group", "opponent_policy": kind == "mixture"}
    read |= {"league": kind == "league", "league_weights": kind == "league", "history": kind == "history"}
    return [name for name in given(args) if not read[name.removeprefix(f"--{Opponent.prefix}.")]]


def check(args: SimpleNamespace, objective: Objective) -> None:
    """Raise ValueError for an opponent that this objective, or the rest of the run, cannot have."""
    opponent = from_args(args)
    asked, loss = f"--gpm.opponent {opponent.kind}", args.actor.policy_loss_type
    if opponent.kind == "group":
        return
    if objective.own_opponent:
        raise ValueError(f"{asked} cannot be used with {loss}, which makes its own opponent of the group: remove it")
    if getattr(objective, "include_self", False):
        raise ValueError(f"{asked} cannot be used with --{objective.prefix}.include_self: remove one of them")
    if opponent.kind != "mixture" and args.reward_model_type != "gpm":
        raise ValueError(f"{asked} needs the embeddings of a GPM: pass --reward_model_type gpm, or remove it")
    if opponent.kind == "mixture" and not objective.own_loss:
        raise ValueError(f"{asked} needs a frozen policy, which {loss} has not: take history or league, or remove it")
    if opponent.kind == "mixture" and args.rollout.n_samples_per_prompt < FEWEST_SAMPLED:
        raise ValueError(
            f"{asked} weighs the answers of a group: raise --rollout.n_samples_per_prompt to {FEWEST_SAMPLED} or more"
        )
