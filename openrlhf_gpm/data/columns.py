"""Which columns of a row mean what; those that would change its meaning and that nothing reads are refused."""

from collections.abc import Iterable, Mapping
from typing import Any

from openrlhf_gpm.data.fields import listed, names_of
from openrlhf_gpm.data.records import BadRow, PairKeys

PROMPTS = ("prompt", "instruction", "question", "query")
"""Names of the prompt's column; the first that a row has."""

ALPACA = "input"
"""What `instruction` is applied to, its second paragraph."""

UNREAD = (
    *(ALPACA, "context", "history", "documents", "passage"),
    *("tools", "functions", "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("image", "images", "video", "videos", "audio", "audios", "chat_template_kwargs"),
)
"""Columns of a row, and keys of a response's message, without which prompt or response says something else."""

META = ("id", "subset", "source", "dataset", "category", "type", "split", "language", "lang", "model", "winner")
META_ENDS = ("_id", "_model", "_source", "_type", "_name", "_path", "_url", "_score", "_rating", "_category")
"""Names of text columns that are about a row, not part of it."""

KNOWLEDGE = ("comparisons", "scores", "ranks", "ratings")
COMMON = ("id", "subset", "system")

GRADES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)


def prompt_column(row: Mapping[str, Any], keys: PairKeys) -> str | None:
    """Name of the row's prompt column: the one in `keys`, else the first of PROMPTS; None without one."""
    return keys.prompt or next((name for name in PROMPTS if row.get(name) is not None), None)


def columns_read(row: Mapping[str, Any], form: str, keys: PairKeys) -> set[str]:
    """The columns of a row that its form reads. form: as `form_of` names it."""
    prompt = prompt_column(row, keys)
    read = {*COMMON, prompt, *([ALPACA] if prompt == "instruction" else [])}
    if form in ("pair", "lists"):
        read |= {keys.chosen, keys.rejected if row.get(keys.rejected) is not None else "reject"}
        return {name for name in read | {"label", "margin", "log_odds"} if name is not None}
    column = {"compared": "comparisons", "scored": "scores", "ranked": "ranks", "rated": "ratings"}[form]
    read |= {"responses" if row.get("responses") is not None else "completions", column}
    return {name for name in read if name is not None}


def check_unread(row: Mapping[str, Any], keys: PairKeys) -> None:
    """Raise BadRow for a column that changes what prompt or response says, and that no form reads."""
    prompt = prompt_column(row, keys)
    read = {prompt, keys.chosen, keys.rejected, *([ALPACA] if prompt == "instruction" else [])}
    _refuse((name for name in UNREAD if name not in read and not _empty(row.get(name))), "the row has a column")


def check_message(message: Mapping[str, Any], name: str) -> None:
    """Raise BadRow for a response's message that says more than its content."""
    _refuse((key for key in UNREAD if not _empty(message.get(key))), f"the message in {name!r} has")


def check_whole_texts(row: Mapping[str, Any], keys: PairKeys) -> None:
    """Raise BadRow if chosen and rejected are texts without a prompt, and another column may be the prompt."""
    read = {keys.chosen, keys.rejected, "reject", *COMMON}
    for name, value in row.items():
        text = isinstance(value, str) and value.strip()
        messages = isinstance(value, list) and value and all(isinstance(i, Mapping) and "role" in i for i in value)
        about = name in META or name.endswith(META_ENDS)
        if name not in read and not about and (text or messages):
            raise BadRow(
                "missing column",
                f"there is no prompt column (there is: {names_of(row)}); --prompt_key names it (train_rm: "
                "--data.prompt_key); drop other columns of text if chosen and rejected hold the prompt",
            )


def graded(row: Mapping[str, Any]) -> int | None:
    """1 where a row's own grades put chosen above rejected, 0 where they are equal, -1 where below; None without."""
    for names in GRADES:
        chosen, rejected = (row.get(name) for name in names)
        if isinstance(chosen, (int, float)) and isinstance(rejected, (int, float)):
            return (chosen > rejected) - (chosen < rejected)
    return None


def _refuse(names: Iterable[str], where: str) -> None:
    if found := list(names):
        raise BadRow(
            "unread column",
            f"{where} {listed(found)}, which is not read and changes what the model should see; write it into the "
            "texts, or drop it",
        )


def _empty(value: Any) -> bool:
    """Whether a value says nothing: null, "", [], {} or a list of such."""
    if isinstance(value, list):
        return all(_empty(item) for item in value)
    return value is None or (isinstance(value, (str, dict)) and not value)
