"""Preference groups on disk while a command works on them, so that memory does not grow with their texts."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from openrlhf_gpm.data.grouping import merge_prompts, short_hash
from openrlhf_gpm.data.prompts import prompt_key
from openrlhf_gpm.data.records import Comparison, PreferenceGroup
from openrlhf_gpm.files import naming
from openrlhf_gpm.json_lines import JsonLines


class Spool(Sequence[PreferenceGroup]):
    """Groups in a temporary file without a name, which disappears with the process, however it ends."""

    def __init__(self, groups: Iterable[PreferenceGroup] = ()) -> None:
        self._lines = JsonLines(tempfile.TemporaryFile())  # noqa: SIM115, closed with the object
        for group in groups:
            self.append(group)

    def append(self, group: PreferenceGroup) -> None:
        """Add a group at the end."""
        comparisons = [[c.first, c.second, c.label, c.margin, c.log_odds] for c in group.comparisons]
        with naming(Path(tempfile.gettempdir())):
            self._lines.append([group.prompt, group.responses, comparisons, group.id, group.subset])

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        prompt, responses, comparisons, name, subset = self._lines[index]
        return PreferenceGroup(prompt, responses, [Comparison(*c) for c in comparisons], name, subset)


class MergedGroups(Sequence[PreferenceGroup]):
    """`merge_prompts` of rows, each group made when it is asked for; memory holds the numbers of its rows."""

    def __init__(self, rows: Sequence[PreferenceGroup]) -> None:
        self.rows = rows
        numbers: dict[int, int] = {}
        self.members: list[array[int]] = []
        """The rows of each group."""
        for i, row in enumerate(rows):
            group = numbers.setdefault(short_hash(prompt_key(row.prompt, row.responses)), len(numbers))
            if group == len(self.members):
                self.members.append(array("L"))
            self.members[group].append(i)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        (group,) = merge_prompts(self.rows[i] for i in self.members[index])
        return group

    def places(self) -> list[tuple[int, list[int]]]:
        """For each row, the index of its group and the indices of its responses in that group."""
        found: list[tuple[int, list[int]]] = [(0, [])] * len(self.rows)
        for number, rows in enumerate(self._parts()):
            (group,) = merge_prompts(row for _, row in rows)
            position = {response: i for i, response in enumerate(group.responses)}
            for i, row in rows:
                found[i] = number, [position[response] for response in row.responses]
        return found

    def _parts(self) -> Iterator[list[tuple[int, PreferenceGroup]]]:
        """(number, row) of each row of a group, group by group."""
        for members in self.members:
            yield [(i, self.rows[i]) for i in members]
