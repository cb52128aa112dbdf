"""Groups: a prompt with K responses, alone (to be scored) or with comparisons (to learn from)."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.data.columns import KNOWLEDGE
from openrlhf_gpm.data.fields import (
    comparison_of,
    id_of,
    names_of,
    number_of,
    plain_row,
    shown,
    subset_of,
    text_of,
    type_of,
)
from openrlhf_gpm.data.messages import MAX_RESPONSES, structure_of, texts_of
from openrlhf_gpm.data.pairs import PAIR_FORMS, normalise_pair, pair_columns
from openrlhf_gpm.data.prompts import group_prompt
from openrlhf_gpm.data.ratings import is_rated, mean_ratings, normalise_rated
from openrlhf_gpm.data.records import BadRow, Comparison, Group, PairKeys, PreferenceGroup

GROUP_FORM = 'a group is {"id": optional, "prompt": text or messages, "responses": [text, ...]}'
GROUP_FORMS = (
    "prompt/responses with one of scores (higher is better), ranks (1 is best), comparisons ([[i, j, label], ...]); "
    "prompt/chosen/rejected as lists of texts; instruction/completions with annotations"
)
FORMS = f"{PAIR_FORMS}; {GROUP_FORMS}"


def normalise_group(row: Any, limit: int = MAX_RESPONSES) -> Group:
    """Read {"id"?, "prompt": text | messages, "responses": [text, ...], "system"?}; other columns are ignored.

    The prompt's column may have any name that a pair's may, and "completions" is the same as "responses".
    Raises ValueError for a missing column, a value of the wrong type, an empty list, or more than `limit` responses.
    """
    row = plain_row(row, GROUP_FORM)
    name = "completions" if row.get("responses") is None and row.get("completions") is not None else "responses"
    responses = row.get(name)
    if responses is None:
        raise BadRow("missing column", f"'responses' is missing (there is: {names_of(row)}); {GROUP_FORM}")
    if not isinstance(responses, list):
        raise BadRow("wrong type", f"{name!r} must be a list of texts, got {type_of(responses)}; {GROUP_FORM}")
    if not responses:
        raise BadRow("empty list", f"{name!r} is empty; give at least one response or drop the line")
    if len(responses) > limit:
        raise BadRow(
            "group size",
            f"{name!r} has {len(responses)} responses, more than {limit}: their scores would be {len(responses)}^2 "
            "numbers; split the group, or give --max_responses",
        )
    texts = [text_of(response, f"{name!r}[{i}]") for i, response in enumerate(responses)]
    return Group(group_prompt(row, PairKeys(), GROUP_FORM), texts, id_of(row))


def normalise_preference(row: Mapping[str, Any], keys: PairKeys | None = None) -> PreferenceGroup:
    """Read one row in any accepted form (docs/data.md): pairs, lists, scores, ranks, comparisons, ratings.

    The columns that are not null decide the form, in the order of `form_of`. Values of numpy and pyarrow become plain
    Python. Optional columns: id (kept unchanged), subset, and for pairs label, margin, log_odds.

    Raises BadRow, a ValueError that says what is wrong with the row.
    """
    row = plain_row(row, FORMS)
    keys = keys or PairKeys()
    return _READERS[form_of(row, keys)](row, keys)


def form_of(row: Mapping[str, Any], keys: PairKeys | None = None) -> str:
    """The form of a row of plain values: "pair", "lists", "compared", "scored", "ranked" or "rated".

    chosen and rejected decide if both are there; then comparisons, scores, ranks, ratings, in this order.
    """
    keys = keys or PairKeys()
    present = {name for name, value in row.items() if value is not None}
    rejected = keys.rejected if keys.rejected in present or keys.rejected != "rejected" else "reject"
    if {keys.chosen, rejected} <= present:
        lists = [_is_texts(row[name]) for name in (keys.chosen, rejected)]
        return "lists" if any(lists) else "pair"
    if present & {"responses", "completions"}:
        for column, form in zip(KNOWLEDGE, ("compared", "scored", "ranked"), strict=False):
            if column in present:
                return form
        if is_rated(row):
            return "rated"
        raise BadRow(
            "missing column",
            f"the responses are not compared: one of scores, ranks, comparisons, ratings is missing (there is: "
            f"{names_of(row)}); {GROUP_FORMS}",
        )
    missing = keys.chosen if keys.chosen not in present else keys.rejected
    raise BadRow("missing column", f"column {missing!r} is missing (there is: {names_of(row)}); {FORMS}")


def form_title(row: Mapping[str, Any], keys: PairKeys | None = None) -> str:
    """The form of a row that `normalise_preference` reads, in words."""
    keys = keys or PairKeys()
    row = plain_row(row, FORMS)
    form = form_of(row, keys)
    if form != "pair":
        return f"{form} group" if form != "lists" else "lists of chosen and rejected"
    prompt, chosen, rejected = pair_columns(row, keys)
    if prompt is not None:
        return f"{prompt}/{chosen}/{rejected}"
    return "whole texts" if isinstance(structure_of(row[chosen], chosen), str) else "whole conversations"


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _pair(row: dict[str, Any], keys: PairKeys) -> PreferenceGroup:
    pair = normalise_pair(row, keys)
    comparison = Comparison(0, 1, pair.label, pair.margin, pair.log_odds)
    return PreferenceGroup(pair.prompt, [pair.chosen, pair.rejected], [comparison], id_of(row), subset_of(row))


def _lists(row: dict[str, Any], keys: PairKeys) -> PreferenceGroup:
    """RewardBench 2: every chosen response over every rejected one."""
    rejected_key = keys.rejected if row.get(keys.rejected) is not None else "reject"
    chosen, rejected = (
        texts_of([value] if isinstance(value := row[name], str) else value, name, GROUP_FORMS)
        for name in (keys.chosen, rejected_key)
    )
    n = len(chosen)
    known = comparison_of(row)  # the row's label, margin and log_odds hold for each comparison
    comparisons = [Comparison(i, n + j, **known) for i in range(n) for j in range(len(rejected))]
    return _group(row, keys, chosen + rejected, comparisons)


def _compared(row: dict[str, Any], keys: PairKeys) -> PreferenceGroup:
    responses = _responses(row, limit=None)
    items = row["comparisons"]
    if not isinstance(items, list):
        raise BadRow("wrong type", f"'comparisons' must be a list of [i, j, label], got {type_of(items)}")
    return _group(row, keys, responses, [_comparison(item, i, len(responses)) for i, item in enumerate(items)])


def _comparison(item: Any, position: int, size: int) -> Comparison:
    """[i, j], [i, j, label] or {"first", "second", "label"?, "margin"?, "log_odds"?}."""
    name = f"'comparisons'[{position}]"
    if isinstance(item, list) and len(item) in (2, 3):
        rest = {"label": item[2]} if len(item) == 3 else {}
        ends = item[:2]
    elif isinstance(item, Mapping):
        rest = dict(item)
        ends = [item.get("first"), item.get("second")]
    else:
        raise BadRow("wrong type", f"{name} must be [i, j], [i, j, label] or an object with first and second")
    for end in ends:
        whole = isinstance(end, (int, float)) and not isinstance(end, bool) and end == end // 1
        if not whole or not 0 <= end < size:
            raise BadRow("wrong index", f"{name} names response {shown(end)}; indices go from 0 to {size - 1}")
    if ends[0] == ends[1]:
        raise BadRow("wrong index", f"{name} compares response {int(ends[0])} with itself")
    try:
        return Comparison(int(ends[0]), int(ends[1]), **comparison_of(rest))
    except BadRow as error:
        raise BadRow(error.kind, f"{name}: {error}") from error


def _scored(row: dict[str, Any], keys: PairKeys) -> PreferenceGroup:
    responses = _responses(row)
    return _group(row, keys, responses, all_pairs(_numbers(row, "scores", len(responses)), _higher))


def _ranked(row: dict[str, Any], keys: PairKeys) -> PreferenceGroup:
    responses = _responses(row)
    return _group(row, keys, responses, all_pairs(_numbers(row, "ranks", len(responses)), _lower))


def _rated(row: dict[str, Any], keys: PairKeys) -> PreferenceGroup:
    """Comparisons by the mean over the attributes on which all responses are rated."""
    rated = normalise_rated(row, keys)
    return _group(row, keys, rated.responses, all_pairs(mean_ratings(rated), _higher), rated.prompt)


def _higher(a: float, b: float) -> bool:
    return a > b


def _lower(a: float, b: float) -> bool:
    return a < b


def all_pairs(values: list[float], better: Callable[[float, float], bool]) -> list[Comparison]:
    """A comparison for every pair of K values, the better one first; equal values get label 0.5."""
    return [
        Comparison(i, j)
        if better(values[i], values[j])
        else Comparison(j, i)
        if better(values[j], values[i])
        else Comparison(i, j, 0.5)
        for i, j in combinations(range(len(values)), 2)
    ]


def _group(
    row: dict[str, Any],
    keys: PairKeys,
    responses: list[str],
    comparisons: list[Comparison],
    prompt: Prompt | None = None,
) -> PreferenceGroup:
    """The checked group. A tie between equal texts is dropped; a preference between them is an error."""
    kept = []
    for c in comparisons:
        if responses[c.first] != responses[c.second]:
            kept.append(c)
        elif c.label != 0.5 or c.margin or c.log_odds:
            raise BadRow(
                "equal responses", f"responses {c.first} and {c.second} are equal, but one is preferred; drop one"
            )
    if not kept:
        raise BadRow("no comparison", "no two different responses are compared; drop the row")
    if prompt is None:
        prompt = group_prompt(row, keys, GROUP_FORMS)
    return PreferenceGroup(prompt, responses, kept, id_of(row), subset_of(row))


def _responses(row: Mapping[str, Any], limit: int | None = MAX_RESPONSES) -> list[str]:
    name = "responses" if row.get("responses") is not None else "completions"
    return texts_of(row[name], name, GROUP_FORMS, limit)


def _numbers(row: Mapping[str, Any], name: str, size: int) -> list[float]:
    values = row[name]
    if not isinstance(values, list) or len(values) != size:
        got = f"{len(values)}" if isinstance(values, list) else type_of(values)
        raise BadRow("wrong type", f"{name!r} must be a list of {size} numbers, one per response, got {got}")
    return [number_of(value, f"'{name}[{i}]'", "every response needs one") for i, value in enumerate(values)]


_READERS: dict[str, Callable[[dict[str, Any], PairKeys], PreferenceGroup]] = {
    "pair": _pair,
    "lists": _lists,
    "compared": _compared,
    "scored": _scored,
    "ranked": _ranked,
    "rated": _rated,
}
