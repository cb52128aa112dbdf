"""From the body of a request to groups and queries. Whatever is wrong with it is Refused, with the field's name."""

import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.data import Group, normalise_group
from openrlhf_gpm.serving.limits import Limits, Refused

logger = logging.getLogger(__name__)

MARK = re.compile(r"<[^<>\s]{1,30}>\Z")
"""How tokenizers write an end of turn: <|eot_id|>, <end_of_turn>, </s>."""


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Refused, 400."""
    try:
        value = json.loads(body)
    except RecursionError:
        raise Refused(400, "", "the JSON is nested too deeply: flatten it") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        text = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise Refused(400, "", f"the body is not JSON ({text}): send one JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise Refused(422, "", "the body must be a JSON object")
    return value


def read_groups(body: dict[str, Any], limits: Limits) -> list[Group]:
    """The groups of /score and /embed; a group without an id is named by its index. Raises Refused, 413 or 422."""
    rows = _list(body, "groups")
    limits.check_count("groups", len(rows), "max_groups", "groups")
    groups = []
    for i, row in enumerate(rows):
        group = _group(row, f"groups[{i}]")
        limits.check_count(f"groups[{i}].responses", len(group.responses), "max_responses", "responses")
        groups.append(Group(group.prompt, group.responses, str(i) if group.id is None else group.id))
    return groups


def read_queries(
    body: dict[str, Any], limits: Limits, prompt_from: str, ends: Sequence[str]
) -> list[tuple[Prompt, str]]:
    """(prompt, response) of each query in OpenRLHF's form: query[i] is prompts[i] with the response after it.

    Args:
        body: query, prompts and, with prompt_from "labels", labels; lists of the same length.
        limits: `max_groups` queries.
        prompt_from: which of the lists holds the prompt that the GPM gets: "prompts", as the policy read it, or
            "labels", a text or messages.
        ends: texts that the policy's tokenizer writes at the end of a response, which are taken off.

    Raises:
        Refused: 413 or 422.
    """
    queries, shown = _list(body, "query"), _list(body, "prompts")
    limits.check_count("query", len(queries), "max_groups", "queries")
    given = _list(body, "labels") if prompt_from == "labels" else shown
    for name, values in (("prompts", shown), ("labels", given)):
        if len(values) != len(queries):
            raise Refused(422, name, f"{len(values)} for {len(queries)} queries: give one per query")
    found = []
    for i, (query, before, prompt) in enumerate(zip(queries, shown, given, strict=True)):
        if not isinstance(query, str) or not isinstance(before, str):
            raise Refused(422, f"query[{i}]" if isinstance(before, str) else f"prompts[{i}]", "must be a text")
        if not query.startswith(before):
            raise Refused(
                422,
                f"query[{i}]",
                f"does not begin with prompts[{i}], so that the response cannot be told from it: the policy's prompt "
                "was cut (raise --data.max_len), or its tokenizer does not give it back unchanged",
            )
        response = _without_ends(query[len(before) :], ends)
        group = _group({"prompt": prompt, "responses": [response]}, f"{prompt_from}[{i}]")
        found.append((group.prompt, response))
    return found


def _without_ends(response: str, ends: Sequence[str]) -> str:
    """The response without the marks at its end."""
    while end := next((end for end in ends if response.endswith(end)), None):
        response = response.removesuffix(end)
    if not ends and (mark := MARK.search(response)):
        logger.warning(
            "get_reward: a response ends with %s; if the policy's tokenizer wrote that and it is not the GPM's own "
            "EOS, pass --policy_eos '%s'",
            mark[0],
            mark[0],
        )
    return response


def _group(row: Any, field: str) -> Group:
    try:
        return normalise_group(row)
    except ValueError as error:
        raise Refused(422, field, str(error)) from error


def _list(body: dict[str, Any], name: str) -> list[Any]:
    values = body.get(name)
    if not isinstance(values, list) or not values:
        raise Refused(422, name, "must be a list with at least one entry")
    return values
