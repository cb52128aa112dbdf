"""Checkpoints: a HF directory with safetensors and `config.gpm` in config.json, opened once, loaded and saved.

Everything that can be wrong with a checkpoint is found before the model is built, from config.json and the headers of
the safetensors files alone, and reported in one line.
"""

import json
import os
import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from openrlhf_gpm.checkpoints.tensors import MISSING, adapter_shapes, check_dtypes, check_head, tensor_shapes
from openrlhf_gpm.checkpoints.trust import check_template, check_trust
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.files import complete_directory, one_line, read_object, write
from openrlhf_gpm.models.attention.choose import FORESTS
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.models.transformers4 import old_names
from openrlhf_gpm.models.trunks import forest_obstacle, max_positions, sliding_window
from openrlhf_gpm.samples.formatting import Formatter


@dataclass(frozen=True)
class Checkpoint:
    """A model whose config.json has been read, once for all that need it."""

    path: Path
    """Its directory, or for `open_pretrained` possibly its name on the Hub."""

    hf: PretrainedConfig
    """config.json, as transformers reads it."""

    adapter_base: Path | None = None
    """Directory or name of the base model, if this is a LoRA adapter."""

    trust_remote_code: bool = False
    """Whether the user allowed the model's own code to run."""

    @property
    def folders(self) -> list[tuple[str, Path]]:
        """What is read of it, for `check_output`."""
        return [("the model", self.path)] + ([("its base model", self.adapter_base)] if self.adapter_base else [])

    @property
    def is_gpm(self) -> bool:
        """Whether config.json says that it is a GPM."""
        return bool(getattr(self.hf, "gpm", None))

    @cached_property
    def gpm(self) -> GPMConfig:
        """The settings under `gpm`. Raises ValueError if the model is not a GPM, or if they are wrong."""
        return GPMConfig.from_pretrained_config(self.hf)

    @property
    def hidden_size(self) -> int:
        """H, of the trunk."""
        return int(self.hf.get_text_config().hidden_size)

    def tokenizer(self) -> Any:
        """Its tokenizer. Raises ValueError if there is none that transformers can read."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.path), trust_remote_code=self.trust_remote_code)
        except Exception as error:  # transformers and tokenizers raise many kinds for a damaged file, even a bare one
            text = f"{self.path} holds no tokenizer that transformers can read: copy the base model's"
            raise ValueError(f"{text} ({one_line(error) or type(error).__name__})") from error
        check_template(tokenizer, self.path)
        return tokenizer

    @property
    def positions(self) -> int | None:
        """Tokens that the trunk can read; None: any number."""
        return max_positions(self.hf)

    def formatter(self, tokenizer: Any = None, gpm: GPMConfig | None = None) -> Formatter:
        """The formatter that the GPM was trained with.

        tokenizer, gpm: default: its own. Raises ValueError if the tokenizer does not fit.
        """
        rows = self.hf.get_text_config().vocab_size
        return Formatter.from_config(tokenizer or self.tokenizer(), gpm or self.gpm, self.positions, rows)

    def forest_obstacle(self, attn_implementation: str, max_len: int | None) -> str | None:
        """Why OpenRLHF cannot encode a group as a forest (`samples/forest.py`) with this trunk; None if it can.

        attn_implementation: --ds.attn_implementation. max_len: of a sample, in tokens; None: any length.
        """
        if attn_implementation not in FORESTS:
            text = f"--ds.attn_implementation {attn_implementation} does not read forests"
            return f"{text}, sdpa and flash_attention_2 do"
        window = sliding_window(self.hf)
        if window is not None and (max_len is None or max_len > window):
            return f"the trunk's sliding window is shorter ({window}) than --data.max_len {max_len}"
        return forest_obstacle(self.hf, attn_implementation)


def open_checkpoint(path: Checkpoint | str | os.PathLike[str], trust_remote_code: bool = False) -> Checkpoint:
    """Open a checkpoint's directory. An open checkpoint is returned as it is.

    Raises ValueError if there is no such directory, if transformers cannot read its config.json, and, unless
    trust_remote_code, if it brings code of its own.
    """
    if isinstance(path, Checkpoint):
        return path
    path = Path(path)
    base = _adapter_base(path)
    directory = path if base is None or (path / "config.json").exists() else base
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory: give the directory of a GPM checkpoint")
    read_object(directory / "config.json", MISSING)
    for part in dict.fromkeys((path, directory, base or path)):
        check_trust(part, trust_remote_code)
    try:
        hf = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # a wrong value raises whatever the model's own checks raise, ZeroDivisionError too
        text = f"{directory / 'config.json'}: transformers cannot read it: {one_line(error)}"
        raise ValueError(text) from error
    text = hf.get_text_config()
    if text.pad_token_id is not None and text.pad_token_id >= text.vocab_size:
        text.pad_token_id = None  # added for training and never trained: any id pads, and torch would refuse this one
    return Checkpoint(path, hf, base, trust_remote_code)


def open_pretrained(name: str, flag: str, trust_remote_code: bool = False) -> Checkpoint:
    """Open what a command of OpenRLHF starts from: a GPM or another model, in a directory or on the Hub.

    Raises ValueError, which names the `flag` that gave it, for what OpenRLHF cannot load: a model that transformers
    cannot read, a LoRA adapter, or a GPM in the layout of a plain classifier; and for a model with code of its own,
    unless trust_remote_code.
    """
    if os.path.isdir(name) and _adapter_base(Path(name)) is not None:
        raise ValueError(
            f"{flag} {name} is a LoRA adapter: merge it into its base model first, `openrlhf-gpm convert --from gpm "
            "--to gpm`"
        )
    try:
        check_trust(name, trust_remote_code)
    except ValueError as error:
        raise ValueError(f"{flag} {error}") from error
    try:
        hf = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        checkpoint = Checkpoint(Path(name), hf, trust_remote_code=trust_remote_code)
    except Exception as error:  # as in `open_checkpoint`
        raise ValueError(f"{flag} {name} is not a model that transformers can read: {one_line(error)}") from error
    if checkpoint.is_gpm and checkpoint.gpm.layout == "classifier":
        raise ValueError(
            f"{flag} {name} is in the layout of a plain classifier: use `openrlhf-gpm convert --from classifier --to "
            "gpm` first"
        )
    return checkpoint


def check_complete(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless a directory holds a GPM's tensors and tokenizer; reads headers, not weights.

    Layers are compared where the files name tensors as the model does, which families with fused experts do not.
    """
    shapes = tensor_shapes(checkpoint.path)
    check_head(checkpoint.path, checkpoint.gpm, checkpoint.hidden_size, shapes)
    with torch.device("meta"):
        wanted = set(gpm_class(checkpoint.hf)(deepcopy(checkpoint.hf)).state_dict())
    missing = sorted(wanted - set(shapes)) if set(shapes) <= wanted else []
    if missing:
        raise ValueError(_missing(checkpoint.path, missing))
    checkpoint.tokenizer()


def _missing(path: Path, names: list[str]) -> str:
    return f"{path}: {len(names)} tensors are missing, first {names[0]}: copy or save it again"


def load_gpm(
    path: Checkpoint | str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    packing_samples: bool = False,
) -> PreTrainedModel:
    """Load a GPM in eval mode.

    Args:
        path: a directory written by training or `save_gpm`; or a LoRA adapter's, which is merged into its base model.
        dtype: of the trunk; default: as stored. Head, gate and embeddings are fp32 in any case.
        device: default: CPU.
        attn_implementation: as in transformers ("sdpa", "flash_attention_2", ...).
        packing_samples: see `make_gpm_class`.

    Raises:
        ValueError: the directory is missing, incomplete, damaged or not a GPM; the text names the file and a remedy.
    """
    checkpoint = open_checkpoint(path)
    adapter = checkpoint.adapter_base is not None
    base = checkpoint.adapter_base or checkpoint.path
    if checkpoint.gpm.layout == "classifier":
        raise ValueError(
            f"{checkpoint.path} is in the layout of a plain classifier (gpm.layout in config.json): score it with the "
            "vllm backend, or use `openrlhf-gpm convert --from classifier --to gpm` first"
        )
    shapes = {} if adapter and not base.is_dir() else tensor_shapes(base)  # a base on the Hub has no head
    if adapter:
        shapes |= adapter_shapes(checkpoint.path)
    check_head(checkpoint.path, checkpoint.gpm, checkpoint.hidden_size, shapes)
    if base.is_dir():
        check_dtypes(base, hasattr(checkpoint.hf, "quantization_config"))

    try:
        model_class: Any = gpm_class(checkpoint.hf, packing_samples)
        if adapter:
            model_class = _without_head_in_base(model_class)
        model, report = model_class.from_pretrained(
            base,
            config=checkpoint.hf,
            dtype=dtype or "auto",
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (RuntimeError, OSError) as error:  # trunk tensors of another size than config.json says; no such base
        raise ValueError(f"{base}: transformers cannot load it: {one_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(_missing(base, missing))
    if unplaced := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"{base}: {len(unplaced)} tensors have no place in the model that config.json describes, first "
            f"{unplaced[0]}: restore config.json, or remove the tensors"
        )
    if adapter:
        model = _merge_adapter(model, checkpoint.path)
    return model.to(device or "cpu").eval()


def save_gpm(model: PreTrainedModel, tokenizer: Any, path: str | os.PathLike[str]) -> None:
    """Write model, config and tokenizer to `path`, which appears (or is replaced) only when it is complete.

    A PEFT model is written as an adapter. Raises ValueError if `path` holds something other than a checkpoint.
    """
    path = Path(path).absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a directory to save to")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
        raise ValueError(f"{path} holds files that are not a checkpoint: give a new directory to save to")
    with complete_directory(path) as new:
        _fill_pad_token(model.config, tokenizer)
        model.save_pretrained(new)
        if not (new / "config.json").exists():  # PEFT leaves it out, and an adapter needs `gpm`
            model.config.save_pretrained(new)
        config = read_object(new / "config.json", MISSING)
        write(new / "config.json", json.dumps(old_names(config) | config, indent=2) + "\n")
        tokenizer.save_pretrained(new)


def _adapter_base(path: Path) -> Path | None:
    """The base model of a LoRA adapter's directory; None if the directory holds a whole model."""
    file = path / "adapter_config.json"
    if not file.exists() or (path / "model.safetensors").exists():
        return None
    base = read_object(file, MISSING).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{file} names no base_model_name_or_path: add the directory of the base model")
    if os.path.isabs(base) and not os.path.isdir(base):
        raise ValueError(f"{file}: base_model_name_or_path {base} does not exist: correct it")
    return Path(base)


def _without_head_in_base(model_class: Any) -> Any:
    """The class for a LoRA adapter's base: transformers reports no missing head, which the adapter brings."""
    brought = [f"^{re.escape(name)}$" for name in ("score.weight", "gate.weight", "temperature.rho")]
    return type(model_class.__name__, (model_class,), {"_keys_to_ignore_on_load_missing": brought})


def _merge_adapter(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError(f"{path} is a LoRA adapter: `pip install peft` to load it") from error
    return PeftModel.from_pretrained(model, path).merge_and_unload()


def _fill_pad_token(config: PretrainedConfig, tokenizer: Any) -> None:
    """Set pad_token_id: plain `*ForSequenceClassification` classes need it to find a sample's last token."""
    text, pad = config.get_text_config(), tokenizer.pad_token_id
    if text.pad_token_id is None and pad is not None and pad < text.vocab_size:
        text.pad_token_id = pad
