"""Cyclic preferences, which no scalar reward can express.

Two builders. `attribute_cycle` finds cycles in real ratings, in the spirit of section 6.1 of arXiv:2410.02197:
different attributes decide the comparisons of one prompt's responses, so that A beats B on the first, B beats C on
the second and C beats A on the third. `synthetic_cycle` imposes a cycle on the responses of n models.
"""

import math
from collections.abc import Iterator, Sequence

from openrlhf_gpm.data.fields import listed, shown
from openrlhf_gpm.data.grouping import unit_hash
from openrlhf_gpm.data.prompts import prompt_key
from openrlhf_gpm.data.records import BadRow, Comparison, Group, PreferenceGroup, RatedGroup

ULTRAFEEDBACK = ("instruction_following", "honesty", "truthfulness", "helpfulness")
"""UltraFeedback's attributes, in the order of the paper's cycle."""

MAX_ORDERS = 500_000  # orders of responses to try for one prompt


def attribute_cycle(rated: RatedGroup, attributes: Sequence[str], subset: str | None = None) -> PreferenceGroup | None:
    """The clearest cycle of n = len(attributes) >= 3 responses, or None if the ratings hold none.

    Response l beats response l + 1, and the last the first, because attributes[l] rates it strictly higher: comparison
    l is decided by attribute l. The clearest cycle is the one whose smallest lead is largest, then the largest sum of
    leads, then the lowest indices. Responses that lack a rating they need, and equal texts, are not used.

    Raises BadRow for a row without one of the attributes.
    """
    n, k = len(attributes), len(rated.responses)
    if n < 3:
        raise ValueError(f"a cycle needs at least 3 attributes, got {n}: {', '.join(attributes)}")
    missing = [name for name in attributes if name not in rated.ratings]
    if missing:
        rated_on = listed(rated.ratings) or "nothing"
        raise BadRow("missing attribute", f"there is no rating of {shown(missing[0])} (rated: {rated_on})")
    if math.perm(k, n) > MAX_ORDERS:
        raise BadRow("group size", f"{k} responses have too many cycles of {n} to look through; keep fewer responses")
    table = [rated.ratings[name] for name in attributes]
    best: tuple[tuple[float, float], list[int]] | None = None
    for order in _paths([], table, rated.responses):
        leads = [_lead(table[i], order[i], order[(i + 1) % n]) for i in range(n)]
        if leads[-1] > 0 and (best is None or (min(leads), sum(leads)) > best[0]):
            best = ((min(leads), sum(leads)), order)
    if best is None:
        return None
    responses = [rated.responses[i] for i in best[1]]
    return PreferenceGroup(rated.prompt, responses, cycle_comparisons(n), rated.id, subset)


def _paths(start: list[int], table: Sequence[Sequence[float | None]], texts: Sequence[str]) -> Iterator[list[int]]:
    """Sequences of len(table) different responses; each beats the next on the attribute of its position."""
    if len(start) == len(table):
        yield start
        return
    for i, text in enumerate(texts):
        if all(text != texts[j] for j in start) and (not start or _lead(table[len(start) - 1], start[-1], i) > 0):
            yield from _paths([*start, i], table, texts)


def _lead(ratings: Sequence[float | None], i: int, j: int) -> float:
    a, b = ratings[i], ratings[j]
    return 0.0 if a is None or b is None else a - b


def cyclic_sets(rated: RatedGroup, attributes: Sequence[str] = ULTRAFEEDBACK) -> dict[str, PreferenceGroup | None]:
    """The paper's sets: maps "no_<attribute>" to the cycle that the other attributes decide, or None.

    Dropping one of the four attributes leaves cycles of three responses. Raises ValueError for fewer than 4
    attributes, BadRow for a row without one of them.
    """
    return {name: attribute_cycle(rated, kept, name) for name, kept in omissions(attributes).items()}


def omissions(attributes: Sequence[str]) -> dict[str, list[str]]:
    """Maps "no_<attribute>" to the other attributes, in order."""
    if len(attributes) < 4 or len(set(attributes)) != len(attributes):
        raise ValueError(
            f"give at least 4 different attributes, so that 3 are left without one, got {', '.join(attributes)}"
        )
    return {f"no_{omitted}": [name for name in attributes if name != omitted] for omitted in attributes}


def cycle_comparisons(n: int, full: bool = False, reverse: bool = False) -> list[Comparison]:
    """Response i beats i + 1, the last beats the first: n comparisons of n >= 3 responses.

    full: a tournament of n (n - 1) / 2 comparisons for odd n: i beats the (n - 1) / 2 responses after it on the
        circle.
    reverse: swaps the two responses of every comparison.
    """
    if n < 3:
        raise ValueError(f"a cycle needs at least 3 responses, got {n}")
    if full and n % 2 == 0:
        raise ValueError(f"a full cyclic tournament needs an odd number of responses, got {n}; try {n + 1}")
    steps = (n - 1) // 2 if full else 1
    edges = [(i, (i + step) % n) for i in range(n) for step in range(1, steps + 1)]
    return [Comparison(j, i) if reverse else Comparison(i, j) for i, j in edges]


def synthetic_cycle(
    group: Group,
    n: int,
    *,
    full: bool = False,
    random_direction: bool = False,
    seed: int = 0,
    subset: str | None = None,
) -> PreferenceGroup:
    """A cycle over the first n responses of a group, the same for every prompt: position i is the i-th of n models.

    random_direction: the negative control. The hash of prompt and seed decides whether the cycle runs forwards or
    backwards, so nothing that a model learns carries over to other prompts.
    Raises BadRow for fewer than n responses, an empty response, or equal responses.
    """
    # Not the hash of a split, which would then hold out prompts of one direction only.
    key = f"direction\0{prompt_key(group.prompt, group.responses)}"
    comparisons = cycle_comparisons(n, full, random_direction and unit_hash(key, seed) < 0.5)
    responses = group.responses[:n]
    if len(responses) < n:
        raise BadRow("group size", f"a cycle of {n} needs {n} responses, got {len(responses)}")
    for i, text in enumerate(responses):
        if not text.strip():
            raise BadRow("empty response", f"'responses[{i}]' is an empty response; drop the row or fill it")
        if text in responses[:i]:
            raise BadRow("equal responses", f"responses {responses.index(text)} and {i} are equal; drop the row")
    return PreferenceGroup(group.prompt, responses, comparisons, group.id, subset)
