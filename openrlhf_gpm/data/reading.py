"""Reads preference data from files: normalises rows, and refuses or counts bad ones."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from os import PathLike
from typing import Any, TypeVar

from openrlhf_gpm.data.bad_rows import BadRows
from openrlhf_gpm.data.groups import normalise_group, normalise_preference
from openrlhf_gpm.data.messages import MAX_RESPONSES
from openrlhf_gpm.data.records import BadRow, Group, PairKeys, PreferenceGroup
from openrlhf_gpm.data.rows import raw_rows

T = TypeVar("T")


def read_preferences(
    path: str | PathLike[str],
    keys: PairKeys | None = None,
    on_bad: str = "refuse",
    report: BadRows | None = None,
    max_chars: int | None = None,
) -> Iterator[tuple[str, PreferenceGroup]]:
    """Yield (where, group) for the rows of a file or dataset in any accepted form, in order, lazily.

    on_bad: "refuse" raises ValueError "where: what is wrong" at the first bad row; "skip" leaves bad rows out and
        records them in `report`. A file that cannot be read raises in either case.
    report: counts rows, good and bad.
    max_chars: a row is bad if its prompt and longest response together have more characters; None: any length.
    """

    return read_with(path, preference_reader(keys, max_chars), on_bad, report)


def preference_reader(
    keys: PairKeys | None = None, max_chars: int | None = None
) -> Callable[[Mapping[str, Any]], PreferenceGroup]:
    """A `normalise_preference` that also refuses rows of more than `max_chars` characters."""

    def read(row: Mapping[str, Any]) -> PreferenceGroup:
        group = normalise_preference(row, keys)
        if max_chars is not None and (length := longest(group)) > max_chars:
            raise BadRow("over-long", f"prompt and response have {length} characters, more than {max_chars}")
        return group

    return read


def read_with(
    path: str | PathLike[str], normalise: Callable[[Any], T], on_bad: str = "refuse", report: BadRows | None = None
) -> Iterator[tuple[str, T]]:
    """As `read_preferences`, for any row normaliser that raises ValueError."""
    if on_bad not in ("refuse", "skip"):
        raise ValueError(f"on_bad must be 'refuse' or 'skip', got {on_bad!r}")
    report = BadRows() if report is None else report
    return _read(path, normalise, on_bad, report)


def _read(
    path: str | PathLike[str], normalise: Callable[[Any], T], on_bad: str, report: BadRows
) -> Iterator[tuple[str, T]]:
    for where, row in raw_rows(path):
        report.rows += 1
        try:
            if isinstance(row, BadRow):
                raise row
            item = normalise(row)
        except ValueError as error:
            report.add(where, error)
            if on_bad == "refuse":
                raise ValueError(f"{where}: {error}") from error
        else:
            yield where, item


def longest(group: PreferenceGroup) -> int:
    """Number of characters of the prompt and its longest response together."""
    return prompt_chars(group) + max(map(len, group.responses))


def prompt_chars(group: PreferenceGroup) -> int:
    """Number of characters of the prompt; for messages, of their contents."""
    if isinstance(group.prompt, str):
        return len(group.prompt)
    return sum(len(message["content"]) for message in group.prompt)


def read_groups(path: str | PathLike[str], limit: int = MAX_RESPONSES) -> Iterator[tuple[str, Group]]:
    """Yield (where, Group) for a file with one group of at most `limit` responses per row, in order, lazily.

    Raises ValueError that starts with the place for a row that is not a group, when it is reached.
    """
    return read_with(path, partial(normalise_group, limit=limit))
