"""What a model's folder may do to this machine: nothing, unless the user passes --trust_remote_code.

transformers runs code that a folder names in `auto_map`, and kernels that it names on the Hub, and asks on stdin if it
may. Here a folder that names any is refused before transformers sees it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from openrlhf_gpm.checkpoints.tensors import INDEX
from openrlhf_gpm.files import one_line, read_object

FLAG = "--trust_remote_code"
FILES = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "adapter_config.json",
)
KERNELS = ("attn_implementation", "experts_implementation")
LEGACY = ("special_tokens_map_file", "tokenizer_file")
"""Keys with a path of whoever saved the tokenizer, which transformers does not open."""

TEMPLATE_SECONDS = 10
PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def check_trust(name: str | os.PathLike[str], trust_remote_code: bool = False) -> None:
    """Raise ValueError where reading a model would run code of its own, or open a file outside its folder.

    name: a folder, or a name on the Hub, of which two small files are fetched. What cannot be read is not judged here:
    whoever loads the model reports it.
    """
    for file, content in _descriptions(name):
        if not trust_remote_code:
            for key, value in _code(content):
                raise ValueError(
                    f"{name} holds code of its own ({key} in {file}: {value}), which is not run: remove {key} if "
                    f"transformers knows this kind of model, or pass {FLAG}"
                )
        for key, value in content.items():
            outside = isinstance(value, str) and key.endswith("_file") and Path(value).name != value
            if outside and key not in LEGACY:
                raise ValueError(f"{name}: {key} in {file} is {value}, outside the folder: copy the file into it")
    _check_index(Path(name))


def _descriptions(name: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, its object) of each file that describes a model."""
    if os.path.isdir(name):
        for file in FILES:
            if (Path(name) / file).exists():
                yield file, read_object(Path(name) / file, "copy it again")
        return
    for file, read in (("config.json", _hub_config), ("tokenizer_config.json", get_tokenizer_config)):
        try:
            yield file, read(str(name))
        except (OSError, ValueError):  # no such model, or no network
            continue


def _hub_config(name: str) -> dict[str, Any]:
    return dict(PreTrainedConfig.get_config_dict(name)[0])


def _code(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, value) of everything in a description, or in the parts that it is made of, that names code to run."""
    for key, value in content.items():
        if key == "auto_map" and value:
            named = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            yield key, ", ".join(str(item) for item in named)[:80]
        elif key.lstrip("_").removesuffix("_internal") in KERNELS and "/" in str(value):
            yield key, str(value)[:80]
        elif isinstance(value, dict):
            yield from _code(value)


def _check_index(path: Path) -> None:
    """Refuse an index that names files outside the folder."""
    for file in (INDEX, "pytorch_model.bin.index.json"):
        if (path / file).exists():
            names = read_object(path / file, "copy it again").get("weight_map")
            for name in names.values() if isinstance(names, dict) else ():
                if Path(str(name)).name != name:
                    raise ValueError(f"{path / file} names the file {name!r}, outside the directory: save it again")


def check_template(tokenizer: Any, name: str | os.PathLike[str]) -> None:
    """Raise ValueError where the chat template does not end; whether it takes these messages is not judged here.

    transformers renders in Jinja's sandbox, which keeps a template from files, modules and attributes, not from loops.
    """
    if not getattr(tokenizer, "chat_template", None):
        return
    try:
        with _time_limit(TEMPLATE_SECONDS):
            tokenizer.apply_chat_template(PROBE, tokenize=False)
    except TimeoutError:
        raise ValueError(
            f"{name}: the chat template did not end within {TEMPLATE_SECONDS} s: give the tokenizer another one"
        ) from None
    except Exception as error:  # templates raise what they like
        if "SecurityError" in type(error).__name__:
            raise ValueError(f"{name}: the chat template reaches outside itself: {one_line(error)}") from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
