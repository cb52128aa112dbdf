"""Evaluation data: rows of any accepted form, and the groups that models score.

Rows of one prompt share responses (a cycle of three answers is three rows). They are merged into one group, so that
each response is encoded once. Every row keeps its comparisons, its subset and its place in that group.
"""

import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gpm.data import (
    BadRows,
    Comparison,
    PairKeys,
    PreferenceGroup,
    normalise_group,
    normalise_preference,
    read_with,
)
from openrlhf_gpm.data.fields import subset_of
from openrlhf_gpm.data.grouping import short_hash
from openrlhf_gpm.data.prompts import prompt_key
from openrlhf_gpm.data.spool import MergedGroups, Spool
from openrlhf_gpm.evaluation.cycles import Outcomes
from openrlhf_gpm.evaluation.metrics import Comparisons, sigmoid
from openrlhf_gpm.evaluation.rewardbench import SUBSETS_V2, Item
from openrlhf_gpm.samples.formatting import Formatter
from openrlhf_gpm.samples.tally import Tally
from openrlhf_gpm.scoring.readable import check_readable

SPLITS = {"allenai/reward-bench": "filtered", "allenai/reward-bench-2": "test"}
"""The split to read of a dataset given by name."""

COMPARED_BY = ("chosen", "scores", "ranks", "comparisons", "ratings")
"""Columns that compare responses. A row with none of them is a group without labels."""

Scores = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Dataset:
    """The data of one --data argument."""

    name: str
    """Short, for columns and file names."""

    source: str

    rows: Sequence[PreferenceGroup]
    """In their order in the file. A row may have no comparisons: it then counts in group metrics only."""

    groups: Sequence[PreferenceGroup]
    """The groups that models score: the rows, or one group for all rows of a prompt."""

    places: list[tuple[int, list[int]]]
    """For each row, the index of its group and the indices of its responses in that group."""

    skipped: str | None = None
    """Which rows were left out, and why; None for none."""

    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """For each model, by name, what it does not read as it was given."""

    def row_scores(self, scores: Scores, row: int) -> NDArray[Any]:
        """The scores between the responses of a row, taken from its group's: (K, K)."""
        group, index = self.places[row]
        return np.asarray(scores[group])[np.ix_(index, index)]


def read_dataset(
    source: str,
    keys: PairKeys | None = None,
    merge: bool = True,
    bad_rows: str = "refuse",
    max_rows: int | None = None,
    formatters: Mapping[str, Formatter] | None = None,
    name: str | None = None,
) -> Dataset:
    """Read a file, or a dataset by name, for evaluation.

    merge: score the rows of one prompt as one group. bad_rows: "refuse" the first bad row with a ValueError that names
    it, or "skip" and count. max_rows: use only the first usable rows. formatters: of the models, by name; a row that
    one of them cannot encode is bad for all, so that all are measured on the same rows.

    Raises ValueError for a bad row, for data without a usable row, and as `read_rows` does.
    """

    report = BadRows()
    tallies = {name: Tally(formatter) for name, formatter in (formatters or {}).items()}

    def usable(row: Any) -> PreferenceGroup:
        group = to_group(row, keys)
        check_readable(group, tallies, f"row {report.rows}" if group.id is None else f"group {group.id!r}")
        return group

    split = SPLITS.get(source) if not Path(source).exists() else None
    reader = read_with(f"{source}:{split}" if split else source, usable, bad_rows, report)
    rows = Spool(group for _, group in islice(reader, max_rows))
    if not len(rows):
        raise ValueError(f"--data {source} holds nothing to evaluate: {report.summary()}")
    if merge:
        groups, places = merged(rows)
    else:
        groups, places = rows, [(i, [*range(len(row.responses))]) for i, row in enumerate(rows)]
    skipped = report.summary() if report.count else None
    return Dataset(name or source, source, rows, groups, places, skipped, tallies)


def to_group(row: Any, keys: PairKeys | None = None) -> PreferenceGroup:
    """A row as a group: any form of `normalise_preference`, or responses without comparisons.

    Raises ValueError that says what is wrong with the row.
    """
    if isinstance(row, Mapping) and row.get("responses") is not None and all(row.get(c) is None for c in COMPARED_BY):
        group = normalise_group(row)
        return PreferenceGroup(group.prompt, group.responses, [], group.id, subset_of(row))
    return normalise_preference(row, keys)


def merged(rows: Sequence[PreferenceGroup]) -> tuple[Sequence[PreferenceGroup], list[tuple[int, list[int]]]]:
    """One group for all rows of a prompt, each response once, and the place of each row (see `Dataset.places`)."""
    groups = MergedGroups(rows)
    return groups, groups.places()


def comparisons(datasets: Sequence[Dataset], scores: Sequence[Scores]) -> Comparisons:
    """All comparisons of several datasets, with a model's scores. Equal prompts count as one."""
    numbers: dict[int, int] = {}
    values, labels, prompts = array("d"), array("d"), array("q")
    subsets: list[str | None] = []
    for dataset, of_groups in zip(datasets, scores, strict=True):
        for row, (group, index) in zip(dataset.rows, dataset.places, strict=True):
            prompt = numbers.setdefault(short_hash(prompt_key(row.prompt, row.responses)), len(numbers))
            if not row.comparisons:
                continue
            matrix = of_groups[group]
            for c in row.comparisons:
                values.append(float(matrix[index[c.first], index[c.second]]))
                labels.append(c.label)
                prompts.append(prompt)
                subsets.append(row.subset and sys.intern(row.subset))
    return Comparisons(np.array(values, float), np.array(labels, float), np.array(prompts, np.int64), subsets)


def outcomes(datasets: Sequence[Dataset], scores: Sequence[Scores], smallest: int = 2) -> list[Outcomes]:
    """The decided comparisons of each group that has any. smallest: groups of fewer responses may be left out."""
    return _outcomes(datasets, scores, lambda row: True, smallest).get(True, [])


def outcomes_by_subset(
    datasets: Sequence[Dataset], scores: Sequence[Scores], smallest: int = 2
) -> dict[str, list[Outcomes]]:
    """`outcomes` per named subset, in order of name."""
    found = _outcomes(datasets, scores, lambda row: row.subset, smallest)
    return {name: found[name] for name in sorted(filter(None, found))}


def _outcomes(
    datasets: Sequence[Dataset], scores: Sequence[Scores], key: Callable[[PreferenceGroup], Any], smallest: int
) -> dict[Any, list[Outcomes]]:
    """The decided comparisons of each group, separately for each key of the rows."""
    found: dict[Any, list[Outcomes]] = {}
    for dataset, of_groups in zip(datasets, scores, strict=True):
        edges: dict[tuple[Any, int], list[tuple[int, int]]] = {}
        rows_of = Counter(group for group, _ in dataset.places)
        for row, (group, index) in zip(dataset.rows, dataset.places, strict=True):
            if len(index) < smallest and rows_of[group] == 1:
                continue
            decided = [(index[b], index[w]) for b, w in map(_decided, row.comparisons) if b != w]
            edges.setdefault((key(row), group), []).extend(decided)
        for (name, group), pairs in edges.items():
            matrix = of_groups[group]
            better, worse = [b for b, _ in pairs], [w for _, w in pairs]
            wins = [bool(np.isfinite(matrix[b, w]) and matrix[b, w] > 0) for b, w in pairs]
            size = len(dataset.groups[group].responses)
            found.setdefault(name, []).append(Outcomes(size, better, worse, wins))
    return found


def rewardbench2_items(
    datasets: Sequence[Dataset], scores: Sequence[Scores], win_rate: bool = False
) -> tuple[list[Item], int]:
    """The items of RewardBench 2 with each response's group score, and the number of rows that are not items.

    A row of its subsets is not an item if it has too few or too many answers. An item of Ties has an id like "tied:5";
    any other has one right and three wrong answers.

    The group score is the mean of the scores (or of their probabilities) over all K responses, itself included. For a
    Bradley-Terry model that is the reward up to a constant, and so the published rule. The mean over the K - 1 others
    would stretch the scores of small groups.
    """
    items, others = [], 0
    for dataset, of_groups in zip(datasets, scores, strict=True):
        for i, row in enumerate(dataset.rows):
            right = sorted({c.first for c in row.comparisons if c.label > 0.5})
            wrong = sorted({c.second for c in row.comparisons if c.label > 0.5})
            tie = row.subset == "Ties" and isinstance(row.id, str) and re.fullmatch(r"(ref|tied):.+", row.id)
            if row.subset not in SUBSETS_V2:
                continue
            if not right or not (tie or (len(right), len(wrong)) == (1, 3)):
                others += 1
                continue
            matrix = dataset.row_scores(of_groups, i)
            standing = (sigmoid(matrix) if win_rate else matrix).mean(1).tolist()
            items.append(Item(str(row.id), row.subset, [standing[r] for r in right], [standing[w] for w in wrong]))
    return items, others


def _decided(comparison: Comparison) -> tuple[int, int]:
    """(better, worse); the same response twice if the label is 1/2."""
    if comparison.label == 0.5:
        return comparison.first, comparison.first
    first = comparison.label > 0.5
    return (comparison.first, comparison.second) if first else (comparison.second, comparison.first)
