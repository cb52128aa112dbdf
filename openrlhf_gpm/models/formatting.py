"""From (prompt, response) to token ids: the one formatter of training, evaluation, scoring, serving and RL.

A sample is: one BOS (where the tokenizer has one), the prompt, the response, one EOS. The prompt is everything before
the last assistant turn, with the generation prompt.
"""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.models.config import GPMConfig, check_input_template

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample and how many of them, from the first, are the prompt's (1 <= prompt_len <= length)."""

    input_ids: list[int]
    prompt_len: int


class Formatter:
    """Renders and tokenises a prompt with one of its responses.

    Args:
        tokenizer: a HF tokenizer with an EOS token.
        chat_template: render with the tokenizer's chat template; otherwise prompt and response are joined as they are.
        input_template: without a chat template, how to write the prompt, with {} in its place.
        max_len: cut samples to this many tokens; the EOS stays.

    Raises:
        ValueError: the tokenizer lacks what is asked of it, or the two kinds of template are combined.
    """

    def __init__(
        self, tokenizer: Any, *, chat_template: bool, input_template: str | None = None, max_len: int | None = None
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token: set eos_token in tokenizer_config.json")
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template: give one with --data.tokenizer_chat_template, or train without "
                "--data.apply_chat_template"
            )
        if chat_template and input_template is not None:
            raise ValueError("--data.input_template is for plain text: leave it out with --data.apply_chat_template")
        check_input_template(input_template)
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.input_template = input_template
        self.max_len = max_len

    @classmethod
    def from_config(cls, tokenizer: Any, config: GPMConfig) -> "Formatter":
        """The formatter that a checkpoint was trained with."""
        return cls(
            tokenizer,
            chat_template=config.chat_template,
            input_template=config.input_template,
            max_len=config.max_len,
        )

    @property
    def pad_token_id(self) -> int:
        """Any id does, because the attention mask covers it: the EOS where there is no padding token."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def encode(self, prompt: Prompt, response: str) -> Encoded:
        """Token ids of prompt + response.

        prompt: a text, or messages [{"role", "content"}, ...] up to the turn that is answered (chat template only).
        response: the last assistant turn's text, may be empty; an EOS text at its end is taken as the end itself.
        Raises ValueError when max_len leaves no room for the response.
        """
        prompt_text, text = self.render(prompt, response)
        prompt_ids = self._with_bos(self._tokenize(prompt_text))
        body = self._without_eos(self._with_bos(self._tokenize(text)))
        # Counted in tokens: the text's border may lie inside a token, which then belongs to the response.
        prompt_len = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, body, strict=False)))
        if self.max_len is not None and len(body) >= self.max_len:
            if prompt_len >= self.max_len - 1:
                raise ValueError(
                    f"the prompt has {prompt_len} tokens, which leaves no room for the response within max_len "
                    f"{self.max_len}: shorten the prompt or raise --data.max_len"
                )
            body = self._without_eos(body[: self.max_len - 1])
        # Without a BOS, an empty prompt leaves the gate nothing but the first token.
        return Encoded([*body, self.tokenizer.eos_token_id], max(1, min(prompt_len, len(body))))

    def render(self, prompt: Prompt, response: str) -> tuple[str, str]:
        """Texts of the prompt alone (ready for an answer) and of prompt and response."""
        eos_text = self.tokenizer.eos_token
        while response.endswith(eos_text):
            response = response.removesuffix(eos_text)
        if not self.chat_template:
            if not isinstance(prompt, str):
                raise ValueError("messages need a chat template: give the prompt as a text, or train with a template")
            prompt_text = self.input_template.format(prompt) if self.input_template else prompt
            return prompt_text, prompt_text + response

        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        answered = [*messages, {"role": "assistant", "content": response}]
        try:
            prompt_text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            text = self.tokenizer.apply_chat_template(answered, tokenize=False)
        except Exception as error:  # jinja's errors and what templates raise themselves: roles, order, system turns
            raise ValueError(f"the chat template rejects these messages: {error}") from error
        if text.rstrip().endswith(eos_text):  # ChatML ends a turn with "<|im_end|>\n"
            text = text.rstrip()
        return prompt_text, text

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _with_bos(self, ids: list[int]) -> list[int]:
        """Exactly one BOS in front: templates often write one already."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        return [bos, *ids[sum(1 for _ in takewhile(lambda i: i == bos, ids)) :]]

    def _without_eos(self, ids: list[int]) -> list[int]:
        """No EOS at the end. The first token stays: it is the BOS, which some tokenizers also use as EOS."""
        kept = len(ids)
        while kept > 1 and ids[kept - 1] == self.tokenizer.eos_token_id:
            kept -= 1
        return ids[:kept]


def collate(encoded: list[Encoded], pad_token_id: int, side: str = "left") -> dict[str, Tensor]:
    """Pad B samples to the longest, T: LongTensors input_ids (B, T), attention_mask (B, T), prompt_lens (B,)."""
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    rows = [torch.tensor(e.input_ids, dtype=torch.long) for e in encoded]

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    return {
        "input_ids": pad(rows, pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in rows], 0),
        "prompt_lens": torch.tensor([e.prompt_len for e in encoded], dtype=torch.long),
    }
