"""Cyclic sets: how many comparisons of a group a model gets right, and how many any ranking could.

Notation: G groups of K responses; wins[i, j] counts the comparisons in which i was preferred to j. The best ranking of
a group gets a minimum feedback arc set wrong: 1 of the 3 edges of a 3-cycle, 3 of the 10 of a regular 5-tournament.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 3  # responses of a group that may have a cycle
MAX_EXACT = 8  # the bound visits 2^K subsets of a group's responses


@dataclass(frozen=True)
class Outcomes:
    """The decided comparisons of one group and whether a model gets them right."""

    size: int
    """K, the number of responses."""

    better: Sequence[int]
    worse: Sequence[int]
    right: Sequence[bool]


def best_ranking(wins: NDArray[Any]) -> NDArray[np.float64]:
    """The largest number of comparisons that one ranking can satisfy: (G, K, K) counts >= 0 -> (G,).

    Exact, by dynamic programming over the set of responses ranked so far: best(S with i) = best(S) + the wins of i
    over the responses not yet ranked. Raises ValueError for K above 8.
    """
    size = wins.shape[-1]
    if size > MAX_EXACT:
        raise ValueError(f"the exact bound is computed for groups of up to {MAX_EXACT} responses, got {size}")
    best = np.full((1 << size, len(wins)), -np.inf)
    best[0] = 0
    for ranked in range(1 << size):
        later = [j for j in range(size) if not ranked >> j & 1]
        for i in later:
            gain = wins[:, i, [j for j in later if j != i]].sum(-1)
            after = ranked | 1 << i
            np.maximum(best[after], best[ranked] + gain, out=best[after])
    return best[-1]


def cyclic_metrics(groups: Sequence[Outcomes]) -> dict[str, Any] | None:
    """Results on groups of three or more responses with three or more comparisons; None without such groups.

    Returns:
        groups, comparisons: counts.
        accuracy: share of the comparisons that the model gets right.
        ranking_bound: the largest share that any ranking of each group, so any scalar reward, can get right. None if a
            group has more than 8 responses; `without_bound` counts these groups.
        cyclic_groups: share of the groups with a bound that no ranking reproduces (their bound is below 1).
        whole: share of the groups in which the model gets every comparison right.
    """
    groups = [group for group in groups if group.size >= SMALLEST and len(group.better) >= 3]
    if not groups:
        return None
    comparisons = sum(len(group.better) for group in groups)
    bounded = [group for group in groups if group.size <= MAX_EXACT]
    satisfiable, cyclic = 0.0, 0
    for size in sorted({group.size for group in bounded}):
        alike = [group for group in bounded if group.size == size]
        wins = np.zeros((len(alike), size, size))
        for row, group in enumerate(alike):
            np.add.at(wins[row], (np.asarray(group.better), np.asarray(group.worse)), 1)
        best = best_ranking(wins)
        satisfiable += float(best.sum())
        cyclic += int((best < wins.sum((1, 2))).sum())
    return {
        "groups": len(groups),
        "comparisons": comparisons,
        "accuracy": sum(sum(group.right) for group in groups) / comparisons,
        "ranking_bound": satisfiable / comparisons if len(bounded) == len(groups) else None,
        "cyclic_groups": cyclic / len(bounded) if bounded else None,
        "without_bound": len(groups) - len(bounded),
        "whole": sum(all(group.right) for group in groups) / len(groups),
    }
