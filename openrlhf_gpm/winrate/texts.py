"""Policies' answers as texts: read from files in the usual forms, and matched by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.data import BadRow, Group, PairKeys, read_with
from openrlhf_gpm.data.fields import names_of, plain_row, text_of, type_of
from openrlhf_gpm.data.prompts import group_prompt, prompt_key

COLUMNS = ("responses", "response", "output")
SUBSETS = ("subset", "dataset", "category")
"""Ours, AlpacaEval's and MT-Bench's name for the kind of a prompt; the first that a row has."""

FORM = (
    'an answer is {"prompt": text or messages, "response": text}, with "responses" for several, {"instruction", '
    '"output"} as AlpacaEval writes it, or {"question_id", "choices"} as MT-Bench writes it'
)


@dataclass(frozen=True)
class Answered:
    """A policy's answers to one prompt."""

    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Of each text, "file:line"."""
    subset: str | None = None
    """What kind of prompt it is, if the first row with it says so."""


@dataclass(frozen=True)
class AnswerFile:
    """A policy's answers, by prompt."""

    policy: str
    file: str
    by_prompt: dict[str, Answered]
    """By `prompt_key`: a text is the same prompt as one user message."""


@dataclass(frozen=True)
class Question:
    """The first turn of one of MT-Bench's questions."""

    text: str
    category: str | None


Questions = Mapping[str, Question]
"""By their ids."""


def read_answers(policy: str, path: str | PathLike[str], questions: Questions | None = None) -> AnswerFile:
    """All answers of a file; rows with the same prompt are several answers to it.

    questions: MT-Bench's, by id. Raises ValueError in one line that starts with the row's place.
    """
    found: dict[str, Answered] = {}
    for place, (group, subset) in read_with(path, lambda row: _answers_of(row, questions)):
        answered = found.setdefault(prompt_key(group.prompt, ()), Answered(group.prompt, subset=subset))
        answered.texts.extend(group.responses)
        answered.places.extend([place] * len(group.responses))
    return AnswerFile(policy, str(path), found)


def read_questions(path: str | PathLike[str]) -> dict[str, Question]:
    """MT-Bench's questions, by id. Raises ValueError as `read_answers` does."""
    return dict(pair for _, pair in read_with(path, _question_of))


def common_keys(files: Sequence[AnswerFile]) -> list[str]:
    """The prompts that all policies answered, in the order of the first file. Raises ValueError if there are none."""
    first, *others = files
    common = [key for key in first.by_prompt if all(key in other.by_prompt for other in others)]
    if not common:
        counts = ", ".join(f"{file.policy} has {len(file.by_prompt)}" for file in files)
        raise ValueError(
            f"--answers: no prompt is in all files ({counts}): let every policy answer the same prompts, in the same "
            "words"
        )
    return common


def left_out(files: Sequence[AnswerFile], common: int) -> list[str]:
    """A line for each policy with answers that others cannot be compared with. common: how many prompts all share."""
    return [
        f"{file.policy}: {more} of its {len(file.by_prompt)} prompts are left out: not every policy answered them"
        for file in files
        if (more := len(file.by_prompt) - common)
    ]


def _answers_of(row: Any, questions: Questions | None) -> tuple[Group, str | None]:
    """The answers of a row, and the prompt's subset."""
    row = plain_row(row, FORM)
    if row.get("choices") is not None and row.get("question_id") is not None:
        return _mt_bench(row, questions)
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise BadRow("missing column", f"column 'response' is missing (there is: {names_of(row)}); {FORM}")
    prompt = group_prompt(row, PairKeys(), FORM)
    if prompt == "":
        raise BadRow(
            "empty prompt", "the prompt is empty, so nothing tells which answers belong together; drop the row"
        )
    value = row[column]
    if isinstance(value, list) != (column == "responses"):
        wanted = "a list of texts" if column == "responses" else "text"
        raise BadRow("wrong type", f"{column!r} must be {wanted}, got {type_of(value)}; {FORM}")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadRow("empty list", "'responses' is empty; give at least one answer or drop the row")
    return Group(prompt, [text_of(text, f"{column!r}") for text in values]), _subset_of(row)


def _mt_bench(row: Mapping[str, Any], questions: Questions | None) -> tuple[Group, str | None]:
    """First turns only: what the second asks depends on what was answered to the first."""
    if questions is None:
        raise BadRow(
            "missing questions", "an answer of MT-Bench, without its question: add --questions question.jsonl"
        )
    question = questions.get(str(row["question_id"]))
    if question is None:
        raise BadRow("missing question", f"question {row['question_id']!r} is not in --questions: give its file")
    choices = row["choices"]
    if not isinstance(choices, list) or not choices:
        raise BadRow("wrong type", f"'choices' must be a list of answers, got {type_of(choices)}")
    texts = [_first_turn(choice, f"'choices'[{i}]") for i, choice in enumerate(choices)]
    return Group(question.text, texts), question.category


def _subset_of(row: Mapping[str, Any]) -> str | None:
    name = next((name for name in SUBSETS if row.get(name) is not None), None)
    return None if name is None else text_of(row[name], repr(name))


def _question_of(row: Any) -> tuple[str, Question]:
    row = plain_row(row, 'a question is {"question_id", "turns": [text, ...]}')
    if row.get("question_id") is None:
        raise BadRow("missing column", f"column 'question_id' is missing (there is: {names_of(row)})")
    return str(row["question_id"]), Question(_first_turn(row, "the question"), _subset_of(row))


def _first_turn(holder: Any, name: str) -> str:
    turns = holder.get("turns") if isinstance(holder, Mapping) else None
    if not isinstance(turns, list) or not turns:
        raise BadRow("wrong type", f"{name} must hold 'turns', a list of texts")
    return text_of(turns[0], f"the first turn of {name}")
