"""Writes preference data as JSON lines, in the project's own forms."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from openrlhf_gpm.config import Message, Prompt
from openrlhf_gpm.data.records import Comparison, PreferenceGroup
from openrlhf_gpm.files import replacing


def to_row(group: PreferenceGroup) -> dict[str, Any]:
    """The row that `normalise_preference` reads as this group: a pair if it is one, otherwise with comparisons.

    The responses of a pair are messages if its prompt is, because OpenRLHF and TRL want the same form for both.
    """
    row: dict[str, Any] = {"id": group.id, "subset": group.subset, "prompt": group.prompt}
    c = group.comparisons[0]
    if len(group.responses) == 2 and len(group.comparisons) == 1 and c.first == 0:
        chosen, rejected = (_as_in(group.prompt, response) for response in group.responses)
        row |= {"chosen": chosen, "rejected": rejected} | _knowledge(c)
    else:
        row |= {"responses": group.responses, "comparisons": [_compact(c) for c in group.comparisons]}
    return {name: value for name, value in row.items() if value is not None}


def _as_in(prompt: Prompt, response: str) -> str | list[Message]:
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]


def _compact(c: Comparison) -> Any:
    """[i, j] or [i, j, label] if that says everything, otherwise an object."""
    if c.margin or c.log_odds is not None:
        return {"first": c.first, "second": c.second} | _knowledge(c)
    return [c.first, c.second] if c.label == 1 else [c.first, c.second, c.label]


def _knowledge(c: Comparison) -> dict[str, float]:
    """label, margin and log_odds, those that are not the default."""
    known: dict[str, float] = {}
    if c.label != 1 or c.log_odds is not None:
        known["label"] = c.label
    if c.margin:
        known["margin"] = c.margin
    if c.log_odds is not None:
        known["log_odds"] = c.log_odds
    return known


def write_groups(path: str | Path, groups: Iterable[PreferenceGroup]) -> int:
    """Write a JSONL file, which appears when it is complete. Returns the number of lines."""
    with replacing(Path(path)) as (file,):
        return write_lines(file, groups)


def write_lines(file: TextIO, groups: Iterable[PreferenceGroup]) -> int:
    """Write groups to an open file, one per line. Returns the number of lines."""
    count = 0
    for group in groups:
        file.write(json.dumps(to_row(group), ensure_ascii=False, allow_nan=False) + "\n")
        count += 1
    return count
