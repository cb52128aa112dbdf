"""Answers in the forms that other judges' tools read."""

from collections.abc import Sequence
from pathlib import Path

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.winrate.texts import AnswerFile


def alpaca_eval(files: Sequence[AnswerFile], keys: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """File name -> the rows of a policy's model outputs, as AlpacaEval reads them: its first answer to each prompt.

    Raises ValueError, which names the flag and the place, for a prompt that is no single instruction, and for a name
    that cannot be a file's.
    """
    for file in files:
        if Path(file.policy).name != file.policy:
            raise ValueError(f"--answers: {file.policy!r} cannot be the name of a file: leave out --export, or rename")
    return {
        f"{file.policy}.json": [
            {
                "instruction": _instruction(file.by_prompt[key].prompt, file.by_prompt[key].places[0]),
                "output": file.by_prompt[key].texts[0],
                "generator": file.policy,
            }
            for key in keys
        ]
        for file in files
    }


def _instruction(prompt: Prompt, place: str) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    raise ValueError(
        f"--export alpaca_eval: {place}: AlpacaEval knows one instruction, no messages: leave out --export"
    )
