"""Format 1: how models of earlier versions, and those of the GPM authors, read a sample.

Prompt and response are rendered and tokenised together: a control token that a text spells is one, a cut takes what
the template writes after the response, and the prompt ends where the tokens of the responses begin to differ from it.
Models are scored as they were trained, so this stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.samples.checks import no_room
from openrlhf_gpm.samples.encoded import Encoded, ResponseError
from openrlhf_gpm.samples.template import Template


@dataclass(frozen=True)
class Format1:
    """How a model of format 1 reads its samples."""

    tokenizer: Any

    template: Template | None
    """None: plain text."""

    input_template: str | None
    """Of plain text: how to write the prompt."""

    generation_prompt: bool
    """Whether the prompt ends with the template's generation prompt."""

    bos: str
    """"one": exactly one in front. "tokenizer": what the template writes and the tokenizer adds to it."""

    eos: str
    """"append": exactly one after the text. "replace": the text's last token becomes the EOS."""

    def encode_group(self, prompt: Prompt, responses: Sequence[str], max_len: int | None) -> list[Encoded]:
        """Token ids of a prompt with each of its responses, in at most max_len. Raises as `Formatter.encode_group`."""
        return [self._sample(i, prompt, response, max_len) for i, response in enumerate(responses)]

    def texts(self, prompt: Prompt, response: str) -> tuple[str, str]:
        """The prompt's text (with the generation prompt, if that is on), and the text of prompt and response."""
        eos_text = self.tokenizer.eos_token
        while response.endswith(eos_text):
            response = response.removesuffix(eos_text)
        if self.template is None:
            if not isinstance(prompt, str):
                raise ValueError("messages need a chat template: give the prompt as a text, or train with a template")
            prompt_text = self.input_template.format(prompt) if self.input_template else prompt
            return prompt_text, prompt_text + response

        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        (prompt_text,) = self.template.render([messages], self.generation_prompt)
        (text,) = self.template.render([[*messages, {"role": "assistant", "content": response}]])
        if self.eos == "append" and text.rstrip().endswith(eos_text):  # ChatML ends a turn with "<|im_end|>\n"
            text = text.rstrip()
        return prompt_text, text

    def _sample(self, index: int, prompt: Prompt, response: str, max_len: int | None) -> Encoded:
        prompt_text, text = self.texts(prompt, response)
        prompt_ids, ids = self._tokenize(prompt_text), self._tokenize(text)
        # `body` is all but the last token, which is the EOS in any case.
        body = ids[:-1] if self.eos == "replace" else self._without_eos(ids)
        # Counted in tokens: the text's border may lie inside a token, which then belongs to the response.
        prompt_len = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, ids, strict=False)))
        truncated = max_len is not None and len(body) >= max_len
        if max_len is not None and truncated:
            if prompt_len >= max_len - 1:
                raise ResponseError(index, no_room(prompt_len, max_len))
            body = body[: max_len - 1]
            if self.eos == "append":
                body = self._without_eos(body)
        # Without a BOS, an empty prompt leaves the gate nothing but the first token.
        return Encoded([*body, self.tokenizer.eos_token_id], max(1, min(prompt_len, len(body))), truncated)

    def _tokenize(self, text: str) -> list[int]:
        tokenizer = self.tokenizer
        if self.bos == "tokenizer":
            return list(tokenizer(text, verbose=False)["input_ids"])
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        bos = tokenizer.bos_token_id
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
