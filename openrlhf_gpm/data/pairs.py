"""Pairs: one chosen and one rejected response, in every form in use."""

from collections.abc import Mapping
from typing import Any

from openrlhf_gpm.config import Message, Prompt
from openrlhf_gpm.data.columns import check_unread, check_whole_texts, prompt_column
from openrlhf_gpm.data.fields import comparison_of, names_of, plain_row
from openrlhf_gpm.data.messages import split_response
from openrlhf_gpm.data.prompts import row_prompt, with_system
from openrlhf_gpm.data.records import BadRow, Pair, PairKeys

PAIR_FORMS = (
    "accepted forms: prompt/chosen/rejected as text or messages; chosen/rejected as whole conversations that differ "
    "in the last assistant message only; chosen/rejected as whole texts; instruction/chosen/reject"
)
TURN = "\n\nAssistant:"  # precedes each of the assistant's turns in the texts of hh-rlhf


def normalise_pair(row: Mapping[str, Any], keys: PairKeys | None = None) -> Pair:
    """Read one row in any of the forms of `PAIR_FORMS`. A column that is None counts as absent.

    A response is text, a list with one assistant message, one such message, or {"response": text} (authors). With a
    prompt column, chosen and rejected may also be whole conversations that repeat it: their shared messages are then
    the prompt. Whole texts in hh-rlhf's notation ("\\n\\nHuman: ... \\n\\nAssistant: ...") are cut after the last
    "Assistant:"; other whole texts have the prompt "". Optional columns: system (the prompt's first message), and
    the numbers label (default 1), margin (default 0) and log_odds.

    Raises ValueError for a missing column, an empty response, equal responses, conversations that differ before the
    last assistant message or have none, a label outside [0, 1], or a value of the wrong type.
    """
    row, keys = plain_row(row, PAIR_FORMS), keys or PairKeys()
    prompt_key, chosen_key, rejected_key = pair_columns(row, keys)
    chosen_lead, chosen = split_response(row[chosen_key], chosen_key)
    rejected_lead, rejected = split_response(row[rejected_key], rejected_key)
    check_unread(row, keys)
    prompt = None if prompt_key is None else row_prompt(row, prompt_key)
    if prompt is None and chosen_lead is None and rejected_lead is None:
        prompt, chosen, rejected = _cut_dialogue(chosen, rejected)
        if prompt is None:
            check_whole_texts(row, keys)
    for text, key in ((chosen, chosen_key), (rejected, rejected_key)):
        if not text.strip():
            raise BadRow("empty response", f"{key!r} is an empty response; drop the row or fill it")
    if chosen_lead != rejected_lead:
        raise BadRow("conversations differ", _difference(chosen_lead, rejected_lead, chosen_key, rejected_key))
    if chosen == rejected:
        raise BadRow(
            "equal responses",
            f"{chosen_key!r} and {rejected_key!r} are equal, so neither can be preferred; drop the row",
        )
    prompt = with_system(row, _joined_prompt(prompt, chosen_lead))
    return Pair(prompt, chosen, rejected, **comparison_of(row))


def pair_columns(row: Mapping[str, Any], keys: PairKeys) -> tuple[str | None, str, str]:
    """Names of the prompt (None if it is inside the responses), chosen and rejected columns of this row."""
    present = {name for name, value in row.items() if value is not None}
    rejected = keys.rejected
    if rejected == "rejected" and rejected not in present and "reject" in present:
        rejected = "reject"
    prompt = prompt_column(row, keys)
    for name in (prompt, keys.chosen, rejected):
        if name is not None and name not in present:
            raise BadRow("missing column", f"column {name!r} is missing (there is: {names_of(row)}); {PAIR_FORMS}")
    return prompt, keys.chosen, rejected


def _cut_dialogue(chosen: str, rejected: str) -> tuple[str | None, str, str]:
    """The shared dialogue of two whole texts in hh-rlhf's notation (None if they are not), and the two answers."""
    cut = chosen.rfind(TURN) + len(TURN)
    if cut < len(TURN) or cut != rejected.rfind(TURN) + len(TURN) or chosen[:cut] != rejected[:cut]:
        return None, chosen, rejected
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _joined_prompt(prompt: Prompt | None, lead: list[Message] | None) -> Prompt:
    """The prompt, from its own column (None without one) and the messages before both responses."""
    if prompt is None:
        if lead == []:
            raise BadRow(
                "missing column",
                f"there is no prompt: no prompt column, and the responses are single messages; {PAIR_FORMS}",
            )
        return "" if lead is None else lead
    if not lead:
        return prompt
    if lead == prompt or (lead[-1]["role"] == "user" and lead[-1]["content"] == prompt):
        return lead
    raise BadRow(
        "conversations differ",
        "chosen and rejected are conversations that do not repeat the prompt column; leave only the last assistant "
        "message in them, or remove the prompt column",
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
