"""Prompts and responses as texts and messages. Each check raises BadRow, as those of fields.py do."""

import json
import re
from collections.abc import Mapping
from typing import Any

from openrlhf_gpm.config import Message, Prompt
from openrlhf_gpm.data.columns import check_message
from openrlhf_gpm.data.fields import json_of, shown, text_of, type_of
from openrlhf_gpm.data.records import BadRow

MAX_RESPONSES = 1000  # in a group, which has a number for every pair of them
PYTHON_MESSAGES = re.compile(r"[\[({]+\s*'(role|content)'\s*:")


def structure_of(value: Any, name: str) -> Any:
    """`value`; messages where it is text that holds them as JSON, as a table's cell does. Other text stays text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{", "("):
        return value
    if PYTHON_MESSAGES.match(value.lstrip()):
        raise BadRow("wrong type", f"{name!r} holds messages in Python's notation; write them as JSON")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):  # a text that happens to start with a bracket
        return value
    items = parsed if isinstance(parsed, list) else [parsed]
    messages = items and all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in items)
    return items if messages else value


def without_nulls(value: Any) -> Any:
    """`value` without the null fields of its objects, however deep: parquet adds them where rows differ."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def messages_of(value: Any, name: str) -> list[Message]:
    """A checked copy of a list of messages, without null fields. One text part is its text."""
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{name!r} must be text or a list of messages, got {type_of(value)}")
    if not value:
        raise BadRow("empty list", f"{name!r} is an empty list of messages")
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRow("wrong type", f"{name!r}[{i}] must be a message, {{'role': text, 'content': text}}")
        text_of(message["role"], f"'role' of {name!r}[{i}]")
        text_of(_content(message), f"'content' of {name!r}[{i}]")
        if len(message) > 2:
            json_of(dict(message), f"{name!r}[{i}]")
    return [without_nulls({**message, "content": _content(message)}) for message in value]


def _content(message: Mapping[str, Any]) -> Any:
    """A message's content; of a list with one text part its text."""
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        part = without_nulls(content[0])
        if part.get("type") == "text" and part.keys() == {"type", "text"}:
            return part["text"]
    return content


def prompt_of(value: Any, name: str) -> Prompt:
    """A prompt: text, or messages that do not end with the assistant's."""
    value = structure_of(value, name)
    if isinstance(value, str):
        return text_of(value, repr(name))
    messages = messages_of(value, name)
    if messages[-1]["role"] == "assistant":
        raise BadRow(
            "wrong roles", f"{name!r} must not end with an assistant message: that is the response; move it there"
        )
    return messages


def split_response(value: Any, name: str) -> tuple[list[Message] | None, str]:
    """Split a response into the messages before it (None for plain text) and its text.

    A response is text, {"response": text}, one assistant message, or messages that end with the assistant's.
    """
    if isinstance(value, Mapping) and "response" in value:
        check_message(value, name)
        value = value["response"]
    value = structure_of(value, name)
    if isinstance(value, str):
        return None, text_of(value, repr(name))
    messages = messages_of([value] if isinstance(value, Mapping) else value, name)
    if messages[-1]["role"] != "assistant":
        raise BadRow(
            "wrong roles", f"{name!r} must end with an assistant message, got role {shown(messages[-1]['role'])}"
        )
    check_message(messages[-1], name)
    return messages[:-1], messages[-1]["content"]


def texts_of(value: Any, name: str, forms: str, limit: int | None = MAX_RESPONSES) -> list[str]:
    """The texts of 1 to `limit` responses, none empty. `forms` ends the message if `value` is not a list."""
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{name!r} must be a list of texts, got {type_of(value)}; {forms}")
    if not value or (limit and len(value) > limit):
        raise BadRow("group size", f"{name!r} has {len(value)} responses; give 1 to {limit or 'any number'}")
    texts = []
    for i, item in enumerate(value):
        lead, text = split_response(item, f"{name}[{i}]")
        if lead:
            raise BadRow("wrong type", f"'{name}[{i}]' is a conversation; leave only the last assistant message in it")
        if not text.strip():
            raise BadRow("empty response", f"'{name}[{i}]' is an empty response; drop the row or fill it")
        texts.append(text)
    return texts
