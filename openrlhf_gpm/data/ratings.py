"""Responses rated on several attributes, as in UltraFeedback."""

from collections.abc import Mapping
from typing import Any

from openrlhf_gpm.data.fields import id_of, number_of, plain_row, shown, text_of, type_of
from openrlhf_gpm.data.messages import texts_of
from openrlhf_gpm.data.prompts import group_prompt
from openrlhf_gpm.data.records import BadRow, PairKeys, RatedGroup

RATED_FORMS = (
    'accepted forms: instruction/completions, with "response" and "annotations": {attribute: {"Rating": ...}} in each '
    "completion (UltraFeedback); prompt/responses/ratings, with ratings {attribute: [one number per response]}"
)
UNRATED = ("", "n/a", "na", "none", "null", "-")  # UltraFeedback writes N/A if the judge gave no number


def is_rated(row: Mapping[str, Any]) -> bool:
    """Whether a row of plain values has one of `RATED_FORMS`."""
    completions = row.get("completions")
    annotated = (
        isinstance(completions, list)
        and bool(completions)
        and all(isinstance(item, Mapping) and item.get("annotations") is not None for item in completions)
    )
    return annotated or row.get("ratings") is not None


def normalise_rated(row: Any, keys: PairKeys | None = None) -> RatedGroup:
    """Read one row of `RATED_FORMS`. Ratings are numbers, or texts that hold one; "N/A" and null are None.

    Raises ValueError (BadRow) for a missing column, an empty response or a value of the wrong type.
    """
    row = plain_row(row, RATED_FORMS)
    if not is_rated(row):
        raise BadRow("missing column", f"the responses are not rated; {RATED_FORMS}")
    column = "responses" if row.get("responses") is not None else "completions"
    responses = texts_of(row.get(column), column, RATED_FORMS)
    ratings = row.get("ratings")
    if ratings is None:
        ratings = _by_attribute([item["annotations"] for item in row["completions"]])
    elif not isinstance(ratings, Mapping) or not ratings:
        raise BadRow("wrong type", f"'ratings' must be {{attribute: [numbers]}}, got {type_of(ratings)}")
    for name, values in ratings.items():
        text_of(name, "an attribute's name")
        if values is not None and (not isinstance(values, list) or len(values) != len(responses)):
            got = f"{len(values)}" if isinstance(values, list) else type_of(values)
            raise BadRow(
                "wrong type",
                f"the ratings of {shown(name)} must be a list of {len(responses)}, one per response, got {got}",
            )
    table = {
        name: [_rating(value, f"the rating of {shown(name)} of response {i}") for i, value in enumerate(values)]
        for name, values in ratings.items()
        if values is not None
    }
    return RatedGroup(group_prompt(row, keys or PairKeys(), RATED_FORMS), responses, table, id_of(row))


def mean_ratings(rated: RatedGroup) -> list[float]:
    """K means over the attributes on which every response has a rating.

    Raises BadRow without such an attribute, because means over different attributes are not comparable.
    """
    complete = [[x for x in values if x is not None] for values in rated.ratings.values() if None not in values]
    if not complete:
        raise BadRow("no rating", "there is no attribute on which every response has a rating; drop the row")
    return [sum(values) / len(complete) for values in zip(*complete, strict=True)]


def _by_attribute(annotations: list[Any]) -> dict[str, list[Any]]:
    for i, item in enumerate(annotations):
        if not isinstance(item, Mapping):
            raise BadRow("wrong type", f"'annotations' of completion {i} must be an object, got {type_of(item)}")
    names = dict.fromkeys(name for item in annotations for name in item)
    return {name: [item.get(name) for item in annotations] for name in names}


def _rating(value: Any, name: str) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("Rating", value.get("rating"))
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in UNRATED:
            return None
        try:
            value = float(text)
        except ValueError:
            raise BadRow("wrong type", f"{name} must be a number, got {shown(text)}") from None
    return None if value is None else number_of(value, name, 'write null or "N/A" for no rating')
