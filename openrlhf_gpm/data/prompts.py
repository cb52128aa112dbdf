"""The prompt of a row, and the key that is equal for equal prompts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.data.fields import names_of, prompt_of, text_of
from openrlhf_gpm.data.records import BadRow, PairKeys


def prompt_column(row: Mapping[str, Any], keys: PairKeys) -> str | None:
    """Name of the row's prompt column: the one in `keys`, else "prompt" or "instruction"; None without one."""
    return keys.prompt or next((name for name in ("prompt", "instruction") if row.get(name) is not None), None)


def group_prompt(row: Mapping[str, Any], keys: PairKeys, forms: str) -> Prompt:
    """The prompt of a row that must have one. `forms` ends the message if it has none."""
    name = prompt_column(row, keys) or "prompt"
    if row.get(name) is None:
        raise BadRow("missing column", f"column {name!r} is missing (there is: {names_of(row)}); {forms}")
    return with_system(row, prompt_of(row[name], name))


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

    Rows with an empty prompt hold whole texts, whose prompt is unknown. Their key is made of the responses, in any
    order.
    """
    if prompt == "":
        return json.dumps(["", *sorted(responses)])
    return json.dumps([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, sort_keys=True)
