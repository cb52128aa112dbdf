"""Cyclic sets: how many comparisons of a group a model gets right, and how many any ranking could.

Notation: G groups of K responses; wins[i, j] counts the comparisons in which i was preferred to j. The best ranking of
a group gets a minimum feedback arc set wrong: 1 of the 3 edges of a 3-cycle, 3 of the 10 of a regular 5-tournament.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
from numpy.typing import NDArray

SMALLEST = 3  # responses of a group that may have a cycle
MAX_EXACT = 8  # the bound visits 2^K subsets of the responses that cycles connect


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


def cyclic_parts(group: Outcomes) -> list[NDArray[np.float64]]:
    """The parts of a group that cycles connect: the wins (K', K') among the K' > 1 responses of each.

    A part is a strongly connected component: the comparisons lead from each of its responses to every other and back.
    One ranking satisfies all comparisons between different parts, so only those inside a part can cost it anything.
    """
    graph = networkx.DiGraph()
    graph.add_weighted_edges_from(
        (*pair, n) for pair, n in Counter(zip(group.better, group.worse, strict=True)).items()
    )
    parts = networkx.strongly_connected_components(graph)
    return [networkx.to_numpy_array(graph, sorted(part)) for part in parts if len(part) > 1]


def cyclic_metrics(groups: Sequence[Outcomes]) -> dict[str, Any] | None:
    """Results on groups of three or more responses with three or more comparisons; None without such groups.

    Returns:
        groups, comparisons: counts.
        accuracy: share of the comparisons that the model gets right.
        ranking_bound: the largest share that any ranking of each group, so any scalar reward, can get right. None if
            cycles connect more than 8 responses of a group; `without_bound` counts these groups.
        cyclic_groups: share of the groups that no ranking reproduces.
        whole: share of the groups in which the model gets every comparison right.
    """
    groups = [group for group in groups if group.size >= SMALLEST and len(group.better) >= 3]
    if not groups:
        return None
    comparisons = sum(len(group.better) for group in groups)
    parts = [cyclic_parts(group) for group in groups]
    without_bound = sum(any(len(wins) > MAX_EXACT for wins in of_group) for of_group in parts)
    bounded = [wins for of_group in parts for wins in of_group if len(wins) <= MAX_EXACT]
    satisfiable = float(comparisons)
    for size in sorted({len(wins) for wins in bounded}):
        alike = np.stack([wins for wins in bounded if len(wins) == size])
        satisfiable -= float(alike.sum() - best_ranking(alike).sum())
    return {
        "groups": len(groups),
        "comparisons": comparisons,
        "accuracy": sum(sum(group.right) for group in groups) / comparisons,
        "ranking_bound": None if without_bound else satisfiable / comparisons,
        "cyclic_groups": sum(map(bool, parts)) / len(groups),
        "without_bound": without_bound,
        "whole": sum(all(group.right) for group in groups) / len(groups),
    }
