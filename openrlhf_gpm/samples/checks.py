"""What is checked before anything is tokenised: a prompt's form, a text, and the tokenizer against the embedding."""

import re
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.samples.control import ControlTokens, texts_of
from openrlhf_gpm.samples.encoded import Encoded, ResponseError

ROLE = re.compile(r"[A-Za-z][\w-]*")


def check_prompt(prompt: Prompt) -> None:
    """Raise ValueError unless it is a text, or messages that a response can follow."""
    if isinstance(prompt, str):
        check_text(prompt, "prompt")
        return
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"a prompt must be a text or a list of messages, got {prompt!r:.80}")
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"prompt[{i}] must be a message, {{'role': text, 'content': text}}, got {message!r:.80}")
        if not ROLE.fullmatch(message["role"]):
            raise ValueError(f"the role of prompt[{i}] must be a word such as user, got {message['role']!r:.80}")
        if "content" not in message or not isinstance(message["content"], str):
            found = message.get("content")
            raise ValueError(f"the content of prompt[{i}] must be a text (no parts, no images), got {found!r:.80}")
        for text in texts_of(message):
            check_text(text, f"prompt[{i}]")
    if prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with an assistant message: that is the response, move it there")


def check_text(text: Any, name: str) -> None:
    """Raise ValueError, which names it, unless it is a text that can be written as UTF-8."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, got {text!r:.80}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} has half a surrogate pair at character {error.start}: repair the text") from None


def pad_token_id(tokenizer: Any, rows: int | None) -> int:
    """The padding token; the EOS where there is none, or none with a row of the embedding: the mask covers it."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None or (rows is not None and pad >= rows) else pad)


def no_room(prompt_len: int, max_len: int) -> str:
    """What is said of a prompt that fills max_len."""
    return (
        f"the prompt has {prompt_len} tokens, which leaves no room for the response within max_len {max_len}: shorten "
        "the prompt or raise --data.max_len in training"
    )


def check_sample(sample: Encoded, index: int, positions: int | None, rows: int | None) -> None:
    """Raise ResponseError for a sample, response `index` of its group, that the model cannot read.

    positions: tokens that it can read; rows: of its embedding; None: enough.
    """
    if positions is not None and len(sample.input_ids) > positions:
        raise ResponseError(
            index,
            f"prompt and response have {len(sample.input_ids)} tokens, but the model has {positions} positions "
            "(max_position_embeddings): shorten the text",
        )
    if rows is not None and max(sample.input_ids) >= rows:
        raise ResponseError(
            index,
            f"a text becomes token {max(sample.input_ids)}, but the model's embedding has {rows} rows: give the model "
            "its own tokenizer",
        )


def check_vocabulary(control: ControlTokens, written: str, rows: int | None) -> None:
    """Raise ValueError if a text, or the template, can become a token without a row of the embedding.

    Special tokens that nothing writes need none: no text becomes one.

    written: what the template writes. rows: of the embedding; None: enough.
    """
    tokenizer = control.tokenizer
    if rows is None or len(tokenizer) <= rows:
        return
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    unread = {i for text, i in control.ids.items() if text not in written and i not in used}
    outside = {i: text for text, i in tokenizer.get_vocab().items() if i >= rows and i not in unread}
    if outside:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows: {outside[min(outside)]!r} has "
            "none; resize the model's embedding, or give it its own tokenizer"
        )
