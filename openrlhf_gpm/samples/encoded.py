"""A sample's token ids, and what was done to its text on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

FIRST, SECOND = "RESPONSE A", "RESPONSE B"


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample; the first prompt_len of them are the prompt (1 <= prompt_len <= length)."""

    input_ids: list[int]
    prompt_len: int
    truncated: bool = False
    """Whether the response was cut to fit `max_len`."""

    escaped: bool = False
    """Whether the response's text held control tokens, which were read as ordinary text."""

    def __post_init__(self) -> None:
        if not 1 <= self.prompt_len <= len(self.input_ids):
            raise ValueError(f"prompt_len {self.prompt_len} is outside 1..{len(self.input_ids)}, the sample")


class ResponseError(ValueError):
    """What is wrong with one response of a group; `index` is its place."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def first_of_equals(samples: Sequence[Encoded]) -> list[int]:
    """For each sample, the index of the first one with the same tokens: its own where there is none before it."""
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(sample.input_ids), i) for i, sample in enumerate(samples)]


def judged_equal(samples: Sequence[Encoded], texts: Sequence[str]) -> list[tuple[int, int]]:
    """(i, j) for each response j whose text is another than that of i, the first with the same tokens."""
    return [(i, j) for j, i in enumerate(first_of_equals(samples)) if texts[i] != texts[j]]


def pair_text(first: str, second: str) -> str:
    """The text that head "pairwise" reads as the response: both responses, each under its mark.

    Its reward r(x, first, second) says how well the first does against the second. The order matters. A mark has as
    many brackets as it takes for neither response to hold it, so no response can move the border.
    """
    brackets = 1
    while any("[" * brackets + mark in text for mark in (FIRST, SECOND) for text in (first, second)):
        brackets += 1
    left, right = "[" * brackets, "]" * brackets
    return f"{left}{FIRST}{right}\n{first}\n{left}{SECOND}{right}\n{second}"
