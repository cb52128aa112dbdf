"""Five kinds of tokenizers and the templates of common model families, small and made here."""

import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    "Name a prime. Seven is a prime, and nine is not a prime.",
    "user system assistant model tool Hello, how are you? I am fine, thank you.",
    "\n\nWhat is the capital of France? Paris is the capital of France.\n\n",
    "<think>\nIt is odd.\n</think>\n\nNo. [INST] Yes [/INST] <<SYS>> < s > | im _ end | eot_id",
] * 4

CONTROL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
CONTROL += [
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
]

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": (  # as Llama 3's, which trims
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
        "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "turns": (  # as Gemma's
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "tight": (  # a control token right before each text, as Zephyr's and Phi's forks
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "inst": (  # as Mistral's
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
}


def _finish(backend: Tokenizer, bos: bool = True, special: bool = True, **names: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="<pad>",
        **({"extra_special_tokens": CONTROL[3:]} if special else {}),
        **names,
    )


def byte_level() -> Any:
    """As GPT-2's, Qwen's and Llama 3's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False),
    )
    return _finish(backend)


def _byte_fallback(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    scratch = Tokenizer(models.BPE())
    scratch.normalizer = normalizers.Replace(" ", "▁")
    scratch.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", *CONTROL, *pieces], show_progress=False)
    )
    model = json.loads(scratch.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ["<unk>", *CONTROL]])
    return backend


def llama_2() -> Any:
    """SentencePiece as Llama 2's and Mistral's: a space is put before every stretch of text."""
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _finish(_byte_fallback(prepend, None), unk_token="<unk>")


def metaspace() -> Any:
    """SentencePiece as later Llama's: a space before the first text only; tokens cross word borders."""
    split = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return _finish(_byte_fallback(None, split), unk_token="<unk>")


def unigram() -> Any:
    """As T5's and XLM-R's: control tokens are pieces of the model; its normalizer makes them of full-width letters."""
    pieces = [("<unk>", 0.0), *((text, 0.0) for text in CONTROL)]
    letters = sorted({letter for text in WORDS for letter in text.replace(" ", "▁")} | set("▁<>|/[]_"))
    pieces += [(letter, -5.0) for letter in letters] + [("▁prime", -3.0), ("▁is", -3.0), ("Yes", -3.0), ("▁Yes", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(text, normalized=True, special=True) for text in CONTROL])
    return _finish(backend, unk_token="<unk>")


def added() -> Any:
    """Byte-level, without BOS; the turns' marks were added as ordinary tokens, as in many fine-tuned models."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=330, special_tokens=["</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    others = [text for text in CONTROL if text not in ("<s>", "</s>", "<pad>")]
    backend.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in [*others, "<think>", "</think>"]]
    )
    return _finish(backend, bos=False, special=False)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte level": byte_level,
    "Llama 2": llama_2,
    "Metaspace": metaspace,
    "Unigram": unigram,
    "added": added,
}
