"""The records of preference data that every other part of the project works with.

A *group* is one prompt with its K responses; a *pair* is a group of two. A prompt is text, or messages
({"role", "content"} dicts) that end before the response.
"""

from dataclasses import dataclass
from typing import Any

from openrlhf_gpm.config import Prompt


class BadRow(ValueError):
    """A row that is not usable preference data. `kind` is the short name under which such rows are counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class PairKeys:
    """The columns of a pair. The --data.*_key flags set other names than the defaults."""

    prompt: str | None = None
    """None: "prompt" or "instruction" if the row has one; otherwise the prompt is inside chosen and rejected."""

    chosen: str = "chosen"

    rejected: str = "rejected"
    """With the default, the authors' name "reject" is found too."""


@dataclass(frozen=True)
class Pair:
    """One comparison, from any form."""

    prompt: Prompt
    """Text, or messages up to the response; "" when chosen and rejected are whole texts."""

    chosen: str

    rejected: str

    label: float = 1.0
    """P(chosen beats rejected), in [0, 1]."""

    margin: float = 0.0
    """How far chosen should be ahead, in raw score units (before the division by tau)."""

    log_odds: float | None = None
    """The score to regress on, log(P / (1 - P)), if the row gives one."""


@dataclass(frozen=True)
class Group:
    """The responses of one prompt, to be compared with each other. A response may be empty (a truncated one)."""

    prompt: Prompt
    responses: list[str]
    id: Any = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known about two responses of a group, given by their indices."""

    first: int

    second: int

    label: float = 1.0
    """P(first beats second), in [0, 1]; 0.5 is a tie."""

    margin: float = 0.0
    """How far first should be ahead, in raw score units (before the division by tau)."""

    log_odds: float | None = None
    """The score of first over second to regress on, if the data gives one."""


@dataclass(frozen=True)
class PreferenceGroup:
    """One prompt, at least two responses, none empty, and what is known about pairs of them.

    A pair is two responses and the one comparison (0, 1).
    """

    prompt: Prompt
    responses: list[str]
    comparisons: list[Comparison]
    id: Any = None
    subset: str | None = None


@dataclass(frozen=True)
class RatedGroup:
    """One prompt whose K responses are rated on several attributes."""

    prompt: Prompt
    responses: list[str]
    ratings: dict[str, list[float | None]]
    """Maps each attribute to K ratings, higher is better; None for a response without one."""
    id: Any = None
