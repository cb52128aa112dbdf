"""The prompt of a row, and the keys that are equal for equal and for nearly equal prompts."""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.data.columns import ALPACA, check_unread, prompt_column
from openrlhf_gpm.data.fields import names_of, text_of
from openrlhf_gpm.data.messages import prompt_of
from openrlhf_gpm.data.records import BadRow, PairKeys

ENDS = "".join(chr(i) for i in range(0x250) if unicodedata.category(chr(i))[0] in "PZ") + "\u3002\uff01\uff1f\u2026"
"""Punctuation and spaces of Latin, and the commonest of Chinese."""


def group_prompt(row: Mapping[str, Any], keys: PairKeys, forms: str) -> Prompt:
    """The prompt of a row that must have one. `forms` ends the message if it has none."""
    name = prompt_column(row, keys) or "prompt"
    if row.get(name) is None:
        raise BadRow("missing column", f"column {name!r} is missing (there is: {names_of(row)}); {forms}")
    check_unread(row, keys)
    return with_system(row, row_prompt(row, name))


def row_prompt(row: Mapping[str, Any], name: str) -> Prompt:
    """The prompt in the column `name`; after an `instruction` comes alpaca's `input`, on a line of its own."""
    prompt = prompt_of(row[name], name)
    added = row.get(ALPACA)
    if name == "instruction" and added:
        if not isinstance(prompt, str):
            raise BadRow(
                "unread column", f"{ALPACA!r} belongs to an instruction that is text; write it into the messages"
            )
        prompt = f"{prompt}\n{text_of(added, repr(ALPACA))}"
    return prompt


def with_system(row: Mapping[str, Any], prompt: Prompt) -> Prompt:
    """The prompt, with the text of the `system` column (if any) as its first message."""
    if not row.get("system"):
        return prompt
    if prompt == "":
        raise BadRow("wrong roles", "whole texts cannot have a 'system' column; put it into the texts")
    system = {"role": "system", "content": text_of(row["system"], "'system'")}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[0] == system:
        return messages
    if messages[0]["role"] == "system":
        raise BadRow("wrong roles", "the 'system' column and the prompt's system message differ; leave one out")
    return [system, *messages]


def prompt_key(prompt: Prompt, responses: Sequence[str]) -> str:
    """A key that is equal for equal prompts; a text is the same as one user message.

    Outer white space and Unicode's normal form (NFC) do not count. Rows with an empty prompt hold whole texts, whose
    prompt is unknown. Their key is made of the responses, in any order.
    """
    return _key(prompt, responses, lambda text: unicodedata.normalize("NFC", text).strip())


def near_key(prompt: Prompt, responses: Sequence[str]) -> str:
    """As `prompt_key`, but also equal for prompts that differ in case, spaces, compatibility forms, punctuation at the
    ends, or characters without a width: a model that learnt one of them knows the others."""
    return _key(prompt, responses, _near)


def _key(prompt: Prompt, responses: Sequence[str], same: Callable[[str], str]) -> str:
    if prompt == "":
        return json.dumps(["", *sorted(responses)])
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return json.dumps([{**message, "content": same(message["content"])} for message in messages], sort_keys=True)


def _near(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())
    return words.strip(ENDS) or words
