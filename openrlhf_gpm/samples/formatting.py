"""From (prompt, response) to token ids: training, evaluation, scoring, serving and RL share this formatter.

A sample is one BOS (if the tokenizer has one), the prompt, the response and one EOS. The prompt is everything before
the last assistant turn, with the generation prompt. A checkpoint that was trained with other conventions records them.
"""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from openrlhf_gpm.config import CHOICES, GPMConfig, Prompt, check_input_template

FIRST, SECOND = "[RESPONSE A]", "[RESPONSE B]"


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample; the first prompt_len of them are the prompt (1 <= prompt_len <= length)."""

    input_ids: list[int]
    prompt_len: int
    truncated: bool = False
    """Whether the response was cut to fit `max_len`."""

    def __post_init__(self) -> None:
        if not 1 <= self.prompt_len <= len(self.input_ids):
            raise ValueError(f"prompt_len {self.prompt_len} is outside 1..{len(self.input_ids)}, the sample")


class Formatter:
    """Renders and tokenises a prompt with one of its responses.

    Args:
        tokenizer: a HF tokenizer with an EOS token.
        chat_template: render with the tokenizer's chat template; otherwise join prompt and response as plain text.
        input_template: without a chat template, how to write the prompt, with {} in its place.
        max_len: cut samples to this many tokens; the EOS stays.
        generation_prompt: the prompt ends with the template's generation prompt.
        bos: "one": exactly one in front; "tokenizer": whatever the template writes and the tokenizer adds to it.
        eos: "append": exactly one after the text; "replace": the text's last token becomes the EOS.

    Raises:
        ValueError: the tokenizer lacks an EOS or a chat template that is needed, or both kinds of template are given.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: bool,
        input_template: str | None = None,
        max_len: int | None = None,
        generation_prompt: bool = True,
        bos: str = "one",
        eos: str = "append",
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
        for name, value in (("bos", bos), ("eos", eos)):
            if value not in CHOICES[name]:
                raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}; got {value!r}")
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.input_template = input_template
        self.max_len = max_len
        self.generation_prompt = generation_prompt
        self.bos = bos
        self.eos = eos

    @classmethod
    def from_config(cls, tokenizer: Any, config: GPMConfig) -> "Formatter":
        """The formatter that a checkpoint was trained with."""
        return cls(
            tokenizer,
            chat_template=config.chat_template,
            input_template=config.input_template,
            max_len=config.max_len,
            generation_prompt=config.generation_prompt,
            bos=config.bos,
            eos=config.eos,
        )

    @property
    def pad_token_id(self) -> int:
        """The padding token, or the EOS if there is none: any id does, because the attention mask covers it."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def encode(self, prompt: Prompt, response: str) -> Encoded:
        """Token ids of prompt + response.

        prompt: a text, or messages [{"role", "content"}, ...] up to the response (chat template only).
        response: the text of the last assistant turn, possibly empty; an EOS written at its end is not repeated.
        Raises ValueError if max_len leaves no room for the response.
        """
        prompt_text, text = self.render(prompt, response)
        prompt_ids = self._tokenize(prompt_text)
        ids = self._tokenize(text)
        # `body` is all but the last token, which is the EOS in any case.
        body = ids[:-1] if self.eos == "replace" else self._without_eos(ids)
        # Counted in tokens: the text's border may lie inside a token, which then belongs to the response.
        prompt_len = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, ids, strict=False)))
        truncated = self.max_len is not None and len(body) >= self.max_len
        if self.max_len is not None and truncated:
            if prompt_len >= self.max_len - 1:
                raise ValueError(
                    f"the prompt has {prompt_len} tokens, which leaves no room for the response within max_len "
                    f"{self.max_len}: shorten the prompt or raise --data.max_len"
                )
            body = body[: self.max_len - 1]
            if self.eos == "append":
                body = self._without_eos(body)
        # Without a BOS, an empty prompt leaves the gate nothing but the first token.
        return Encoded([*body, self.tokenizer.eos_token_id], max(1, min(prompt_len, len(body))), truncated)

    def render(self, prompt: Prompt, response: str) -> tuple[str, str]:
        """The prompt's text (with the generation prompt, if that is on), and the text of prompt and response."""
        if not isinstance(response, str):
            raise ValueError(f"a response must be a text, got {response!r:.80}")
        if not isinstance(prompt, (str, list)):
            raise ValueError(f"a prompt must be a text or a list of messages, got {prompt!r:.80}")
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
            prompt_text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=self.generation_prompt
            )
            text = self.tokenizer.apply_chat_template(answered, tokenize=False)
        except Exception as error:  # jinja's errors and what templates raise themselves: roles, order, system turns
            raise ValueError(f"the chat template rejects these messages: {error}") from error
        if self.eos == "append" and text.rstrip().endswith(eos_text):  # ChatML ends a turn with "<|im_end|>\n"
            text = text.rstrip()
        return prompt_text, text

    def _tokenize(self, text: str) -> list[int]:
        if self.bos == "tokenizer":
            return list(self.tokenizer(text)["input_ids"])
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        # Exactly one BOS in front: templates often write one already.
        return [bos, *ids[sum(1 for _ in takewhile(lambda i: i == bos, ids)) :]]

    def _without_eos(self, ids: list[int]) -> list[int]:
        """The ids without EOS at the end. The first token stays: some tokenizers use the EOS as BOS too."""
        kept = len(ids)
        while kept > 1 and ids[kept - 1] == self.tokenizer.eos_token_id:
            kept -= 1
        return ids[:kept]


def pair_text(first: str, second: str) -> str:
    """The text that head "pairwise" reads as the response: both responses, each under its mark.

    Its reward r(x, first, second) says how well the first does against the second. The order matters.
    """
    return f"{FIRST}\n{first}\n{SECOND}\n{second}"
