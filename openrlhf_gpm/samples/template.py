"""A tokenizer's chat template: conversations to text, and what the template does to the texts that it is given."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from openrlhf_gpm.config import Message

WORD = "zqword{}qz"
"""Stands for a text where it matters what a template writes around it, or whether it writes it at all."""


class Template:
    """The chat template of a tokenizer.

    today: the day that a template is told when it asks for one (`strftime_now`), so that a score depends on no clock.

    Raises ValueError, if `check`, for a template that does not write the response's text.
    """

    def __init__(self, tokenizer: Any, today: str, check: bool = True) -> None:
        self.tokenizer = tokenizer
        self._strftime = date.fromisoformat(today).strftime
        self._closings: dict[tuple[str, ...], str] = {}
        self._left_out: dict[tuple[str, ...], list[str]] = {}
        self.written = ""
        """What it writes around the texts of a short conversation; "" if it rejects that one."""
        try:
            (prompt,), (whole,) = self.render([_words(["user"])], True), self.render([_words(["user", "assistant"])])
        except ValueError:  # the rows will say what it rejects
            return
        self.written = prompt + whole
        if check:
            self.closing(_words(["user"]))

    def render(self, conversations: Sequence[Sequence[Message]], generation_prompt: bool = False) -> list[str]:
        """The text of each conversation; with the generation prompt at its end if asked for.

        Raises ValueError for messages that the template rejects.
        """
        if not conversations:
            return []
        try:
            texts: list[str] = self.tokenizer.apply_chat_template(
                [list(messages) for messages in conversations],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                strftime_now=self._strftime,
            )
        except Exception as error:  # jinja's errors and what templates raise themselves: roles, order, system turns
            raise ValueError(f"the chat template rejects these messages: {error}") from error
        return texts

    def closing(self, messages: Sequence[Message]) -> str:
        """What it writes after the response to these messages. Raises ValueError if it does not write the response."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._closings:
            self._closings[roles] = self._closing(messages)
        return self._closings[roles]

    def left_out(self, messages: Sequence[Message]) -> list[str]:
        """The roles of the messages of a prompt that are not in what it writes."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._left_out:
            try:
                (text,) = self.render([_words(roles)], generation_prompt=True)
            except ValueError:  # it rejects our words, though not these messages: a tool's answer that must be JSON
                self._left_out[roles] = []
            else:
                self._left_out[roles] = [role for i, role in enumerate(roles) if WORD.format(i) not in text]
        return self._left_out[roles]

    def _closing(self, messages: Sequence[Message]) -> str:
        (text,) = self.render([[*messages, {"role": "assistant", "content": WORD}]])
        _, response, closing = text.rpartition(WORD)
        if not response:
            raise ValueError(
                "the chat template does not write the response's text: give one that writes assistant turns and takes "
                "their content as text (--data.tokenizer_chat_template in training, chat_template.jinja in a model)"
            )
        return closing


def _words(roles: Sequence[str]) -> list[Message]:
    return [{"role": role, "content": WORD.format(i)} for i, role in enumerate(roles)]
