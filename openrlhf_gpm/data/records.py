"""What preference data is once it has been read: the records that every other part of the project works with.

A *group* is one prompt with its K responses; a *pair* is a group of two. A prompt is text, or messages
({"role", "content"} dicts) that end before the response.
"""

from dataclasses import dataclass
from typing import Any

from openrlhf_gpm.config import Prompt


class BadRow(ValueError):
    """One row is no usable preference data. `kind` is the short name under which such rows are counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class PairKeys:
    """The columns of a pair. Other names than the defaults come from the --data.*_key flags."""

    prompt: str | None = None
    """None: "prompt" or "instruction" where the row has one, else the prompt is inside chosen and rejected."""

    chosen: str = "chosen"

    rejected: str = "rejected"
    """The authors' name "reject" is found too, when this is the default."""


@dataclass(frozen=True)
class Pair:
    """One comparison, whatever form it was written in."""

    prompt: Prompt
    """Text, or messages up to the response; "" when chosen and rejected are whole texts."""

    chosen: str

    rejected: str

    label: float = 1.0
    """P(chosen beats rejected), in [0, 1]."""

    margin: float = 0.0
    """How far chosen should be ahead, in raw score units (before the division by tau)."""

    log_odds: float | None = None
    """The score to regress on, log(P / (1 - P)), where the row gives one."""


@dataclass(frozen=True)
class Group:
    """The responses of one prompt, to be compared with each other. Responses may be empty, as truncated ones are."""

    prompt: Prompt
    responses: list[str]
    id: Any = None


@dataclass(frozen=True)
class Comparison:
    """What is known about two responses of a group, given by their indices."""

    first: int

    second: int

    label: float = 1.0
    """P(first beats second), in [0, 1]; 0.5 is a tie."""

    margin: float = 0.0
    """How far first should be ahead, in raw score units (before the division by tau)."""

    log_odds: float | None = None
    """The score of first over second to regress on, where the data gives one."""


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
    """Attribute -> K ratings, higher is better; None where a response has none."""
    id: Any = None
