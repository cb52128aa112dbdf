"""Preference data in every accepted form, as plain Python: no torch, no tokenizer.

A *pair* is one comparison of two responses to a prompt; a *group* is one prompt with its K responses. A prompt is
text, or messages ({"role", "content"} dicts) that end before the response.

Errors are ValueErrors that say what is wrong with one row. `read_groups` puts file:line in front; callers of
`normalise_pair` add where their row came from.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

Message = dict[str, Any]
Prompt = str | list[Message]

PAIR_FORMS = (
    "accepted forms: prompt/chosen/rejected as text or messages; chosen/rejected as whole conversations that differ "
    "in the last assistant message only; chosen/rejected as whole texts; instruction/chosen/reject"
)
GROUP_FORM = 'a group is {"id": optional, "prompt": text or messages, "responses": [text, ...]}'


@dataclass(frozen=True)
class PairKeys:
    """The columns of a pair. Other names than the defaults come from the --data.*_key flags."""

    prompt: str | None = None
    """None: "prompt" or "instruction" where the row has one, else the prompt is inside chosen and rejected."""

    chosen: str = "chosen"

    rejected: str = "rejected"
    """The authors' name "reject" is found too, when this is the default."""


@dataclass(frozen=True)
class Pair:
    """One comparison, whatever form it was written in."""

    prompt: Prompt
    """Text, or messages up to the response; "" when chosen and rejected are whole texts."""

    chosen: str

    rejected: str

    label: float = 1.0
    """P(chosen beats rejected), in [0, 1]."""

    margin: float = 0.0
    """How far chosen should be ahead, in raw score units (before the division by tau)."""


@dataclass(frozen=True)
class Group:
    """The responses of one prompt, to be compared with each other. Responses may be empty, as truncated ones are."""

    prompt: Prompt
    responses: list[str]
    id: Any = None


def normalise_pair(row: Mapping[str, Any], keys: PairKeys | None = None) -> Pair:
    """Read one row in any of the forms of `PAIR_FORMS`; columns that hold None count as absent.

    A response is text, a list with one assistant message, one such message, or {"response": text} (authors). With a
    prompt column, chosen and rejected may also be whole conversations that repeat it: their shared messages are then
    the prompt. Optional columns: label (default 1) and margin (default 0), numbers.

    Raises ValueError for a missing column, an empty response, equal responses, conversations that differ before the
    last assistant message or have none, a label outside [0, 1], or a value of the wrong type.
    """
    keys = keys or PairKeys()
    prompt_key, chosen_key, rejected_key = _pair_columns(row, keys)
    chosen_lead, chosen = _split_response(row[chosen_key], chosen_key)
    rejected_lead, rejected = _split_response(row[rejected_key], rejected_key)
    for text, key in ((chosen, chosen_key), (rejected, rejected_key)):
        if not text.strip():
            raise ValueError(f"{key!r} is an empty response; drop the row or fill it")
    if chosen_lead != rejected_lead:
        raise ValueError(_difference(chosen_lead, rejected_lead, chosen_key, rejected_key))
    if chosen == rejected:
        raise ValueError(f"{chosen_key!r} and {rejected_key!r} are equal, which is no preference; drop the row")
    prompt = _joined_prompt(None if prompt_key is None else _prompt(row[prompt_key], prompt_key), chosen_lead)
    label = _number(row, "label", 1.0)
    if not 0 <= label <= 1:
        raise ValueError(f"'label' must be in [0, 1], the probability that chosen beats rejected, got {label}")
    return Pair(prompt, chosen, rejected, label, _number(row, "margin", 0.0))


def normalise_group(row: Any) -> Group:
    """Read {"id"?, "prompt": text | messages, "responses": [text, ...]}; other columns are ignored.

    Raises ValueError for a missing column, a value of the wrong type or an empty list.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected a JSON object, got {_type(row)}; {GROUP_FORM}")
    for key in ("prompt", "responses"):
        if row.get(key) is None:
            raise ValueError(f"{key!r} is missing (there is: {_names(row)}); {GROUP_FORM}")
    responses = row["responses"]
    if not isinstance(responses, list):
        raise ValueError(f"'responses' must be a list of texts, got {_type(responses)}; {GROUP_FORM}")
    if not responses:
        raise ValueError("'responses' is empty; give at least one response or drop the line")
    texts = [_text(response, f"'responses'[{i}]") for i, response in enumerate(responses)]
    return Group(_prompt(row["prompt"], "prompt"), texts, row.get("id"))


def read_groups(path: str | PathLike[str]) -> Iterator[tuple[int, Group]]:
    """Read a JSONL file of groups, one a line: yields (line number from 1, Group) in file order; skips blank lines.

    Raises ValueError that starts with file:line for a line that is not UTF-8, not JSON or not a group. Lazy: the
    error comes when its line is reached.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()  # some editors write a BOM
                group = normalise_group(json.loads(text)) if text else None
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno}); each line must be one "
                    "whole JSON object"
                ) from error
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            if group is not None:
                yield number, group


def _pair_columns(row: Mapping[str, Any], keys: PairKeys) -> tuple[str | None, str, str]:
    """Names of the prompt (None if it is inside the responses), chosen and rejected columns of this row."""
    present = {name for name, value in row.items() if value is not None}
    rejected = keys.rejected
    if rejected == "rejected" and rejected not in present and "reject" in present:
        rejected = "reject"
    prompt = keys.prompt or next((name for name in ("prompt", "instruction") if name in present), None)
    for name in (prompt, keys.chosen, rejected):
        if name is not None and name not in present:
            raise ValueError(f"column {name!r} is missing (there is: {_names(row)}); {PAIR_FORMS}")
    return prompt, keys.chosen, rejected


def _split_response(value: Any, name: str) -> tuple[list[Message] | None, str]:
    """Split a response column into the messages before the response (None for plain text) and the response."""
    if isinstance(value, Mapping) and "response" in value:
        value = value["response"]
    if isinstance(value, str):
        return None, _text(value, repr(name))
    messages = _messages([value] if isinstance(value, Mapping) else value, name)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{name!r} must end with an assistant message, got role {messages[-1]['role']!r}")
    return messages[:-1], messages[-1]["content"]


def _joined_prompt(prompt: Prompt | None, lead: list[Message] | None) -> Prompt:
    """The prompt from its own column (None: there is none) and from the messages that lead to both responses."""
    if prompt is None:
        if lead == []:
            raise ValueError(
                f"there is no prompt: no prompt column, and the responses are single messages; {PAIR_FORMS}"
            )
        return "" if lead is None else lead
    if not lead:
        return prompt
    if lead == prompt or (lead[-1]["role"] == "user" and lead[-1]["content"] == prompt):
        return lead
    raise ValueError(
        "chosen and rejected are conversations that do not repeat the prompt column; leave only the last assistant "
        "message in them, or remove the prompt column"
    )


def _difference(chosen: list[Message] | None, rejected: list[Message] | None, *names: str) -> str:
    if chosen is None or rejected is None:
        return f"{names[0]!r} and {names[1]!r} must both be text or both be messages"
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    where = min(len(chosen), len(rejected)) if shared is None else shared
    return (
        f"{names[0]!r} and {names[1]!r} must share all but the last assistant message, but they differ at message "
        f"{where + 1}; a preference compares two responses to one prompt"
    )


def _prompt(value: Any, name: str) -> Prompt:
    if isinstance(value, str):
        return _text(value, repr(name))
    messages = _messages(value, name)
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"{name!r} must not end with an assistant message: that is the response; move it there")
    return messages


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"{name!r} must be text or a list of messages, got {_type(value)}")
    if not value:
        raise ValueError(f"{name!r} is an empty list of messages")
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"{name!r}[{i}] must be a message, {{'role': text, 'content': text}}")
        _text(message.get("content"), f"'content' of {name!r}[{i}]")
    return [dict(message) for message in value]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {_type(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a tokenizer would fail on it with a message that names no row
            raise ValueError(
                f"{name} has half a surrogate pair at character {error.start}; repair the text"
            ) from error
    return value


def _number(row: Mapping[str, Any], name: str, default: float) -> float:
    value = row.get(name)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name!r} must be a finite number, got {value!r}; leave it out for {default:g}")
    return float(value)


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(name for name, value in row.items() if value is not None) or "nothing"


def _type(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
