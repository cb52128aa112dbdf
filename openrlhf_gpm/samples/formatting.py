"""From prompts and responses to token ids: training, evaluation, scoring, serving and RL share this formatter.

A sample is the prompt, the response, what the template writes after a response, and one EOS. The prompt is everything
before the last assistant turn, with the generation prompt, rendered and tokenised alone, behind one BOS (if the
tokenizer has one). So it is the same in every sample of a group, and so is the gate, which reads its last token.
What data says is text: it becomes neither a control token nor a turn (`control.py`).

Checkpoints of format 1 are read by `format1.py`, the way they were trained.
"""

import logging
from collections.abc import Sequence
from typing import Any

from openrlhf_gpm.config import (
    CHOICES,
    FORMAT_VERSION,
    TODAY,
    GPMConfig,
    Message,
    Prompt,
    check_input_template,
)
from openrlhf_gpm.samples.checks import check_prompt, check_sample, check_text, check_vocabulary, no_room, pad_token_id
from openrlhf_gpm.samples.control import END_THINK, HIDING, THINK, ControlTokens, Hidden, hidden, texts_of
from openrlhf_gpm.samples.encoded import Encoded as Encoded
from openrlhf_gpm.samples.encoded import ResponseError as ResponseError
from openrlhf_gpm.samples.encoded import pair_text as pair_text
from openrlhf_gpm.samples.format1 import Format1
from openrlhf_gpm.samples.template import WORD, Template

logger = logging.getLogger(__name__)


class Formatter:
    """Renders and tokenises a prompt with its responses.

    Args:
        tokenizer: a HF tokenizer with an EOS token.
        chat_template: render with the tokenizer's chat template; otherwise join prompt and response as plain text.
        input_template: without a chat template, how to write the prompt, with {} in its place.
        max_len: cut responses so that samples have at most this many tokens; what follows a response stays.
        reasoning: see `GPMConfig.reasoning`.
        today: the day that a template is told when it asks for one, ISO 8601.
        generation_prompt, bos, eos, format_version: other conventions, see `format1.py`.
        positions: tokens that the model can read; None: any number.
        rows: of the model's embedding; None: as many as the tokenizer has tokens.

    Raises:
        ValueError: the tokenizer lacks an EOS or a chat template that is needed, both kinds of template are given, the
            template does not write the response, or the tokenizer has tokens without a row of the embedding.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: bool,
        input_template: str | None = None,
        max_len: int | None = None,
        reasoning: str | None = None,
        today: str = TODAY,
        generation_prompt: bool = True,
        bos: str = "one",
        eos: str = "append",
        format_version: int = FORMAT_VERSION,
        positions: int | None = None,
        rows: int | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token: set eos_token in tokenizer_config.json")
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template: give one with --data.tokenizer_chat_template, or train without "
                "--data.apply_chat_template; to a trained model, copy chat_template.jinja from where it was trained"
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
        self.reasoning = reasoning
        self.generation_prompt = generation_prompt
        self.bos = bos
        self.eos = eos
        self.positions = positions
        old = format_version == 1 or not generation_prompt or (bos, eos) != ("one", "append")
        self.template = Template(tokenizer, today, check=not old) if chat_template else None
        self.former = Format1(tokenizer, self.template, input_template, generation_prompt, bos, eos) if old else None
        written = self.template.written if self.template else input_template or ""
        self.control = ControlTokens(tokenizer, written)
        self.pad_token_id = pad_token_id(tokenizer, rows)
        self.rows = rows if rows is not None and rows < len(tokenizer) else None
        check_vocabulary(self.control, written, rows)

    @classmethod
    def from_config(
        cls, tokenizer: Any, config: GPMConfig, positions: int | None = None, rows: int | None = None
    ) -> "Formatter":
        """The formatter that a checkpoint was trained with; positions and rows are the model's."""
        if config.format_version == 1:
            logger.warning(
                "this model is of format 1 (an earlier openrlhf-gpm) and read as it was trained: control tokens in "
                "texts are control tokens, and the gate is read where responses begin to differ; train it again for "
                "format 2"
            )
        return cls(
            tokenizer,
            chat_template=config.chat_template,
            input_template=config.input_template,
            max_len=config.max_len,
            reasoning=config.reasoning,
            today=config.today,
            generation_prompt=config.generation_prompt,
            bos=config.bos,
            eos=config.eos,
            format_version=config.format_version,
            positions=positions,
            rows=rows,
        )

    def encode(self, prompt: Prompt, response: str) -> Encoded:
        """`encode_group` of one response."""
        return self.encode_group(prompt, [response])[0]

    def encode_group(self, prompt: Prompt, responses: Sequence[str]) -> list[Encoded]:
        """Token ids of a prompt with each of its responses.

        prompt: a text, or messages [{"role", "content"}, ...] up to the response (chat template only).
        responses: texts of the last assistant turn, possibly empty; one EOS written at the end of a text is its end.
        Raises ValueError for a prompt that cannot be read, ResponseError for a response.
        """
        check_prompt(prompt)
        for i, response in enumerate(responses):
            check_text(response, f"responses[{i}]: a response")
        if self.former:
            samples = self.former.encode_group(prompt, responses, self.max_len)
        else:
            samples = self._encode(prompt, responses)
        for i, sample in enumerate(samples):
            check_sample(sample, i, self.positions, self.rows)
        return samples

    def cut_at_positions(self) -> "Formatter":
        """This formatter, which now cuts a response beyond the model's positions: what a policy writes ends no run."""
        if self.positions is not None:
            self.max_len = min(self.max_len or self.positions, self.positions)
        return self

    def holds_control_text(self, prompt: Prompt) -> bool:
        """Whether the texts of a prompt spell control tokens, which are read as text."""
        return any(self.control.spelled(text) for text in texts_of(prompt))

    def render(self, prompt: Prompt, response: str) -> tuple[str, str]:
        """The prompt's text, with the generation prompt, and the text of the whole sample."""
        if self.former:
            return self.former.texts(prompt, response)
        head, (body,), closing = self._render(prompt, [self._own_text(response)])
        return head, head + body + closing

    def _encode(self, prompt: Prompt, responses: Sequence[str]) -> list[Encoded]:
        texts = [self._own_text(response) for response in responses]
        hide = self._hide([*texts_of(prompt), *texts], prompt)
        head, bodies, closing = self._render(hide.hide(prompt), [hide.hide(text) for text in texts])
        prompt_ids = self._with_bos(self.control.token_ids([head], hide)[0])
        end = [*self._closing_ids(closing), self.tokenizer.eos_token_id]
        rows = self.control.continue_ids(head, bodies, hide)
        return [
            self._sample(i, prompt_ids, body, end, bool(self.control.spelled(text)))
            for i, (body, text) in enumerate(zip(rows, texts, strict=True))
        ]

    def _sample(self, index: int, prompt: list[int], body: list[int], end: list[int], escaped: bool) -> Encoded:
        room = len(body) if self.max_len is None else self.max_len - len(prompt) - len(end)
        if room < min(1, len(body)):
            raise ResponseError(index, no_room(len(prompt), self.max_len or 0))
        return Encoded([*prompt, *body[:room], *end], len(prompt), len(body) > room, escaped)

    def _own_text(self, response: str) -> str:
        """The response without the EOS that ends it, and without its reasoning where that is stripped."""
        text = response.removesuffix(self.tokenizer.eos_token)
        return strip_reasoning(text) if self.reasoning == "strip" else text

    def _hide(self, texts: Sequence[str], prompt: Prompt) -> Hidden:
        """The control tokens that the texts spell; those that two of a prompt's texts spell together, too."""
        hide = self.control.hidden(texts)
        edges = self.control.edges(texts_of(prompt))
        if not edges:
            return hide
        apart = self.control.hidden(texts, edges)
        heads = [self._head(each.hide(prompt)) for each in (hide, apart)]
        return hide if len({tuple(self.control.spelled(head)) for head in heads}) == 1 else apart

    def _head(self, prompt: Prompt) -> str:
        """The prompt's text, with the generation prompt."""
        if self.template is None:
            if not isinstance(prompt, str):
                raise ValueError("messages need a chat template: give the prompt as a text, or train with a template")
            return self.input_template.format(prompt) if self.input_template else prompt
        (head,) = self.template.render([_messages(prompt)], generation_prompt=True)
        return head

    def _render(self, prompt: Prompt, responses: Sequence[str]) -> tuple[str, list[str], str]:
        """See `render`; texts are as in `_own_text`, or hidden."""
        head = self._head(prompt)
        if self.template is None:
            return head, list(responses), ""
        messages = _messages(prompt)
        missing = self.template.left_out(messages)
        if missing:
            raise ValueError(f"the chat template leaves out the {missing[0]} message: leave it out of the prompt")
        closing = self.template.closing(messages)
        keep = self.reasoning == "keep"
        tags = hidden((THINK, END_THINK) if keep else (), [*texts_of(messages), *responses], HIDING[::-1])
        wholes = self.template.render([[*messages, _answer(tags.hide(text))] for text in responses])
        before = head
        if keep or not all(whole.startswith(head) for whole in wholes):
            (text,) = self.template.render([[*messages, _answer(WORD)]])
            before = text[: text.rindex(WORD)]
        bodies = []
        for whole, response in zip(wholes, responses, strict=True):
            start = head if whole.startswith(head) and not keep else before
            inner = whole[len(start) : len(whole) - len(closing)]
            bodies.append(tags.show(inner) if whole == start + inner + closing else response)
        return head, bodies, closing

    def _closing_ids(self, closing: str) -> list[int]:
        """Token ids of what the template writes after a response, without EOS at its end."""
        eos = self.tokenizer.eos_token
        if closing.rstrip().endswith(eos):  # ChatML ends a turn with "<|im_end|>\n"
            closing = closing.rstrip()
            while closing.endswith(eos):
                closing = closing.removesuffix(eos)
        return self.control.continue_ids("a", [closing], hidden((), (), HIDING))[0]

    def _with_bos(self, ids: list[int]) -> list[int]:
        """The ids with exactly one BOS in front: templates often write one already.

        Without a BOS, an empty prompt is an EOS: the gate has to read a token that no response changes.
        """
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids or [self.tokenizer.eos_token_id]
        first = next((i for i, token_id in enumerate(ids) if token_id != bos), len(ids))
        return [bos, *ids[first:]]


def strip_reasoning(text: str) -> str:
    """The text without what is up to its last </think>, and without reasoning that is not finished."""
    _, closed, answer = text.rpartition(END_THINK)
    answer = answer.partition(THINK)[0]
    return answer.lstrip() if closed else answer


def _messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
