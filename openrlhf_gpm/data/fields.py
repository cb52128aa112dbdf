"""Checks of a row's values. Each raises BadRow, which names the value and says what is wrong with it."""

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from openrlhf_gpm.data.records import BadRow

SHOWN = 40  # characters of a user's value in a message
SHOWN_NAMES = 16  # columns
MAX_DEPTH = 64  # nested values


def plain(value: Any, depth: int = 0) -> Any:
    """The value in plain Python: arrays become lists, numpy and pyarrow scalars numbers, Decimal a float."""
    if value is None or isinstance(value, (str, bool, int, float)):
        item = getattr(value, "item", None)  # numpy.float64 is a float, numpy.str_ a str
        return value if item is None else item()
    if depth > MAX_DEPTH:
        raise BadRow("nested too deeply", f"values are nested more than {MAX_DEPTH} deep; flatten the row")
    if isinstance(value, Mapping):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, Decimal):
        return float(value)
    for method in ("tolist", "as_py"):  # numpy's and pyarrow's
        if hasattr(value, method):
            return plain(getattr(value, method)(), depth + 1)
    return value


def plain_row(row: Any, form: str) -> dict[str, Any]:
    """The row as a dict of plain values. `form` ends the message if the row is not an object."""
    if not isinstance(row, Mapping):
        raise BadRow("not an object", f"expected a JSON object, got {type_of(row)}; {form}")
    return {name: plain(value) for name, value in row.items()}


def text_of(value: Any, name: str) -> str:
    """`value`, checked to be text that can be encoded."""
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name} must be text, got {type_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a tokenizer would fail on it with a message that names no row
            raise BadRow(
                "broken text", f"{name} has half a surrogate pair at character {error.start}; repair the text"
            ) from error
    return value


def number_of(value: Any, name: str, remedy: str) -> float:
    """`value` as a finite float."""
    try:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an int beyond any float
        pass
    raise BadRow("not a finite number", f"{name} must be a finite number, got {shown(value)}; {remedy}")


def label_of(value: Any, name: str = "'label'", first: str = "chosen", second: str = "rejected") -> float:
    """`value` as a probability in [0, 1]; true and false say nothing of which side is meant."""
    if isinstance(value, bool):
        raise BadRow("wrong type", f"{name} must be a number in [0, 1], got {value}; write 1 or 0")
    label = number_of(value, name, "leave it out for 1")
    if not 0 <= label <= 1:
        raise BadRow(
            "label outside [0, 1]",
            f"{name} must be in [0, 1], the probability that {first} beats {second}, got {shown(value)}",
        )
    return label


def comparison_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns label (default 1, or the sigmoid of log_odds), margin (default 0) and log_odds (default None)."""
    log_odds, label, margin = (row.get(name) for name in ("log_odds", "label", "margin"))
    if log_odds is not None:
        log_odds = number_of(log_odds, "'log_odds'", "leave it out if there is none")
    if label is not None:
        label = label_of(label)
    elif log_odds is None:
        label = 1.0
    else:
        label = 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0
    margin = 0.0 if margin is None else number_of(margin, "'margin'", "leave it out for 0")
    side = _sign(label - 0.5)
    for name, lead in (("margin", margin), ("log_odds", log_odds or 0.0)):
        agrees = _sign(lead) in (0, side) or (name == "log_odds" and side == 0)
        if not agrees:
            raise BadRow(
                "contradiction",
                f"'label' {label:g} and {name!r} {lead:g} contradict each other: the sign of {name!r} says which side "
                "is ahead; correct one, or leave it out",
            )
    return {"label": label, "margin": margin, "log_odds": log_odds}


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def json_of(value: Any, name: str) -> Any:
    """`value`, checked to be writable as JSON."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        raise BadRow("not JSON", f"{name} cannot be written as JSON: give texts, finite numbers or null") from None
    return value


def id_of(row: Mapping[str, Any]) -> Any:
    """The row's id, unchanged and writable as JSON; None without one."""
    value = row.get("id")
    return value if value is None or isinstance(value, int) else json_of(value, "'id'")


def subset_of(row: Mapping[str, Any]) -> str | None:
    """The row's subset as text; None without one."""
    value = row.get("subset")
    if value is None:
        return None
    return text_of(str(value) if isinstance(value, (int, float)) else value, "'subset'")


def names_of(row: Mapping[str, Any]) -> str:
    """The columns that are not null, for a message."""
    names = [name for name, value in row.items() if value is not None]
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return listed(names[:SHOWN_NAMES]) + more or "nothing"


def listed(names: Iterable[Any]) -> str:
    """Names as a message shows them."""
    return ", ".join(n if (n := str(name)).isprintable() and len(n) <= SHOWN else shown(n) for name in names)


def shown(value: Any) -> str:
    """A user's value as a message shows it: short and printable."""
    if isinstance(value, (str, int, float)) or value is None:
        text = repr(value[: SHOWN + 1]) if isinstance(value, str) else repr(value)
        return text if len(text) <= SHOWN + 2 else f"{text[:SHOWN]}..."
    return type_of(value)


def type_of(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
