"""Tiny tokenizers, trunks and GPMs, built here: nothing is downloaded."""

import os
import shutil
import warnings
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML: EOS closes every turn and a newline follows it."""

TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<turn>' + m['role'] + '\n' + m['content'] + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
"""As Gemma's: writes a BOS itself, no EOS at all, refuses a system turn."""

TEXTS = [
    "Name a prime. Seven is a prime, and nine is not a prime.",
    "user system assistant Hello, how are you? I am fine, thank you.",
    "\n\nWhat is the capital of France? Paris is the capital of France.\n\n",
] * 4


def make_tokenizer(chat_template: str | None = CHATML, bos: bool = True, pad: bool = True) -> Any:
    """Byte-level BPE with a few merges: any text goes through, and tokens may span the prompt's border."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_end|>", "<pad>", "<|im_start|>", "<turn>", "</turn>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="<|im_end|>",
        pad_token="<pad>" if pad else None,
        extra_special_tokens=special[3:],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenRLHF parses its flags as on a GPU: on a CPU it replaces what only a GPU can do."""
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """BOS, EOS, padding token and a ChatML template."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def turns_tokenizer() -> Any:
    """A template that writes a BOS and no EOS."""
    return make_tokenizer(TURNS)


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    """No chat template."""
    return make_tokenizer(None)


@pytest.fixture(scope="session")
def no_bos_tokenizer() -> Any:
    """ChatML without a BOS, as Qwen's."""
    return make_tokenizer(bos=False)


def trunk_config(trunk: str = "llama", **changes: Any) -> Any:
    """A transformers config of a hidden-32, two-layer trunk for the tokenizers above."""
    from transformers import AutoConfig

    sizes: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if trunk != "gpt2":
        sizes["intermediate_size"] = 48
    if trunk not in ("gpt2", "gpt_neox", "opt"):
        sizes["num_key_value_heads"] = 2
    if trunk == "gemma2":  # a sliding window shorter than the samples, as in the real one's every other layer
        sizes |= {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
    if trunk == "deepseek_v3":  # keys and values have heads of other sizes
        sizes |= {
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
        }
        sizes |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        sizes |= {"v_head_dim": 12, "num_key_value_heads": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    if trunk == "gpt2":
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return AutoConfig.for_model(trunk, **(sizes | changes))


def make_gpm(trunk: str = "llama", packing_samples: bool = False, seed: int = 0, **gpm: Any) -> Any:
    """A GPM with random weights in eval mode; its gate is random too, not the zeros that training starts from."""
    from openrlhf_gpm.config import GPMConfig
    from openrlhf_gpm.models.gpm import gpm_class

    torch.manual_seed(seed)
    config = trunk_config(trunk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one plane with a softmax gate
        config.gpm = GPMConfig(**({"dim": 6} | gpm)).to_dict()
        model = gpm_class(config, packing_samples)(config)
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh trunk is nearly the identity: make attention matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def gpm_checkpoint(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Path:
    """The directory of a gated Llama GPM, dim 6. Read only: copy it to change it."""
    from openrlhf_gpm.checkpoints.checkpoint import save_gpm

    path = tmp_path_factory.mktemp("checkpoint") / "gpm"
    save_gpm(make_gpm(), chat_tokenizer, path)
    return path


def all_flags(parser: ArgumentParser) -> dict[str, Action]:
    """The flags of a parser and of the subcommands below it, by option string. argparse has no public list of them."""
    found = {option: action for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        for below in action.choices.values() if isinstance(action.choices, dict) else ():
            found |= all_flags(below)
    return found


@pytest.fixture(scope="session")
def flags_of() -> Callable[[ArgumentParser], dict[str, Action]]:
    """`all_flags`."""
    return all_flags


@pytest.fixture(scope="session")
def new_tokenizer() -> Callable[..., Any]:
    """`make_tokenizer`, for tests that want another template or no padding token."""
    return make_tokenizer


@pytest.fixture(scope="session")
def new_config() -> Callable[..., Any]:
    """`trunk_config`, without `gpm`."""
    return trunk_config


@pytest.fixture(scope="session")
def new_gpm() -> Callable[..., Any]:
    """`make_gpm`, by trunk and GPM settings."""
    return make_gpm


CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
"""Of a Chromium that root starts, and that asks for nothing by itself."""


@pytest.fixture(scope="module")  # no longer: the event loop of its driver would be in the way of other tests
def browser() -> Iterator[Any]:
    """A headless Chromium: the program that CHROMIUM names, or the first of its names on PATH."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if program is None:
        pytest.skip("no Chromium: `make browser` installs Debian's, or let CHROMIUM name one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield chromium
        chromium.close()


@dataclass
class Tab:
    """A page in a browser, and what it did: the addresses that it asked for, its dialogs, what its console said."""

    page: Any
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, each without a memory of others. width: in pixels; scheme: "light" or "dark". No error may stay."""
    tabs: list[Tab] = []

    def open_tab(width: int = 1280, scheme: str = "light", **options: Any) -> Tab:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        context.set_default_timeout(60_000)
        tab = Tab(context.new_page())
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("dialog", lambda dialog: (tab.dialogs.append(dialog.message), dialog.dismiss()))
        tab.page.on("pageerror", lambda error: tab.console.append(str(error)))
        tab.page.on("console", lambda message: tab.console.append(message.text))
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        tab.page.context.close()
        assert tab.dialogs == []
        said = [text for text in tab.console if not text.startswith("Failed to load resource")]  # so is a refusal
        assert said == []


@pytest.fixture(scope="session")
def contrast() -> Callable[[Any], float]:
    """The contrast (WCAG 2) of the text of an element, a playwright locator, with what lies behind it: 1 to 21."""
    return lambda element: float(element.evaluate(CONTRAST))


CONTRAST = """(element) => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  const over = (below, [r, g, b, a = 1]) => [r, g, b].map((each, i) => a * each + (1 - a) * below[i]);
  const behind = layers.reverse().reduce(over, [255, 255, 255]);
  const linear = (each) => (each / 255 <= 0.04045 ? each / 255 / 12.92 : ((each / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const text = over(behind, parse(getComputedStyle(element).color));
  const [low, high] = [light(behind), light(text)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""
