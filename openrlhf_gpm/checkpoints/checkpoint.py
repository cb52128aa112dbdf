"""Reading and writing GPM checkpoints: a HF directory with safetensors and `config.gpm` in config.json.

Everything that can be wrong with a checkpoint is found before the model is built, from config.json and the headers of
the safetensors files alone, and told in one line.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import gpm_class

__all__ = ["GPMConfig", "load_gpm", "read_gpm_config", "save_gpm"]

Shapes = dict[str, tuple[int, ...]]
INDEX = "model.safetensors.index.json"


def load_gpm(
    path: str | os.PathLike[str],
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
    path = Path(path)
    adapter = read_adapter(path)
    base = path if adapter is None else adapter
    config = read_hf_config(path if adapter is None or (path / "config.json").exists() else base)
    gpm = GPMConfig.from_pretrained_config(config)
    if gpm.layout == "classifier":
        raise ValueError(
            f"{path} is in the layout of a plain classifier (gpm.layout in config.json): score it with the vllm "
            "backend, or use `openrlhf-gpm convert --from classifier --to gpm` first"
        )
    shapes = {} if adapter is not None and not base.is_dir() else tensor_shapes(base)  # a base on the Hub has no head
    if adapter is not None:
        shapes |= adapter_shapes(path)
    check_head(path, gpm, config.get_text_config().hidden_size, shapes)

    try:
        model_class: Any = gpm_class(config, packing_samples)
        model, report = model_class.from_pretrained(
            base,
            config=config,
            dtype=dtype or "auto",
            attn_implementation=attn_implementation,
            output_loading_info=True,
        )
    except (RuntimeError, OSError) as error:  # trunk tensors of another size than config.json says; no such base
        raise ValueError(f"{base}: transformers cannot load it: {_one_line(error)}") from error
    in_adapter = {"score.weight", "gate.weight", "temperature.rho"} if adapter is not None else set()
    missing = sorted(set(report["missing_keys"]) - in_adapter)
    if missing:
        raise ValueError(f"{base}: {len(missing)} tensors are missing, first {missing[0]}: copy or save it again")
    if adapter is not None:
        model = _merge_adapter(model, path)
    return model.to(device or "cpu").eval()


def save_gpm(model: PreTrainedModel, tokenizer: Any, path: str | os.PathLike[str]) -> None:
    """Write model, config and tokenizer to `path`, which appears (or is replaced) only when it is complete.

    A PEFT model is written as an adapter. Raises ValueError when `path` holds something other than a checkpoint.
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
        tokenizer.save_pretrained(new)


@contextmanager
def complete_directory(path: Path) -> Iterator[Path]:
    """A directory beside `path` to write to: it becomes `path`, or replaces it, at the end of the block without error.

    Otherwise it disappears, and `path` is as it was.
    """
    path = path.absolute()
    new = path.with_name(f".{path.name}.new-{os.getpid()}")
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def read_gpm_config(path: str | os.PathLike[str]) -> GPMConfig:
    """`config.gpm` of a checkpoint directory. Raises ValueError as `load_gpm` does."""
    return GPMConfig.from_pretrained_config(read_hf_config(Path(path)))


def read_hf_config(path: Path) -> PretrainedConfig:
    """The directory's config.json as a transformers config, or ValueError in one line."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory: give the directory of a GPM checkpoint")
    read_json(path / "config.json")
    try:
        return AutoConfig.from_pretrained(path)
    except Exception as error:  # a wrong value raises whatever the model's own checks raise, ZeroDivisionError too
        raise ValueError(f"{path / 'config.json'}: transformers cannot read it: {_one_line(error)}") from error


def read_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer in a checkpoint's directory, or ValueError in one line."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers and tokenizers raise many kinds for a damaged file, even a bare one
        raise ValueError(f"{path} holds no tokenizer that transformers can read: copy the base model's") from error


def tensor_files(path: Path) -> list[Path]:
    """A directory's safetensors files, those of its index where it has one. Raises ValueError where there are none."""
    if (path / INDEX).exists():
        weight_map = read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{path / INDEX} has no weight_map: copy or save it again")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{path / INDEX} names the file {name!r}, outside the directory: save it again")
        return [path / name for name in names]
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if any(path.glob("model-*.safetensors")):
        raise ValueError(f"{path} has its tensors in several files, but no {INDEX}: copy or save it again")
    if any(path.glob("pytorch_model*.bin")):
        raise ValueError(f"{path} holds pytorch_model.bin: save it again as safetensors")
    raise ValueError(f"{path} has no model.safetensors: the checkpoint is incomplete, copy or save it again")


def tensor_shapes(path: Path) -> Shapes:
    """Name and shape of every tensor in a directory's safetensors files, from their headers alone."""
    return {key: shape for file in tensor_files(path) for key, shape in tensor_header(file).items()}


def read_adapter(path: Path) -> Path | None:
    """The base model of a LoRA adapter directory; None when the directory holds a whole model."""
    file = path / "adapter_config.json"
    if not file.exists() or (path / "model.safetensors").exists():
        return None
    base = read_json(file).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{file} names no base_model_name_or_path: add the directory of the base model")
    if os.path.isabs(base) and not os.path.isdir(base):
        raise ValueError(f"{file}: base_model_name_or_path {base} does not exist: correct it")
    return Path(base)


def adapter_shapes(path: Path) -> Shapes:
    """Name (as in the merged model) and shape of the whole modules that an adapter carries."""
    if (path / "adapter_model.safetensors").exists():
        shapes = tensor_header(path / "adapter_model.safetensors")
    elif (path / "adapter_model.bin").exists():  # OpenRLHF writes this one under ZeRO-3
        tensors = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    else:
        raise ValueError(f"{path} has no adapter_model.safetensors: the adapter is incomplete, copy or save it again")
    return {key.removeprefix("base_model.model."): shape for key, shape in shapes.items()}


def check_head(path: Path, gpm: GPMConfig, hidden_size: int, shapes: Shapes) -> None:
    """Raise ValueError unless the head and the gate that `gpm` announces are there, with its sizes."""
    if "score.weight" not in shapes:
        if "value_head.weight" in shapes:
            raise ValueError(f"{path} is in the GPM authors' layout: use `openrlhf-gpm convert --from authors`")
        raise ValueError(f"{path} has no tensor score.weight, the embedding head: was it saved without its head?")
    wanted = {"score.weight": (gpm.head_rows, hidden_size)}
    if gpm.gated:
        if "gate.weight" not in shapes:
            raise ValueError(
                f"{path} has no tensor gate.weight, but config.json has gate {gpm.gate!r}: save it again with its gate"
            )
        wanted["gate.weight"] = (gpm.k, hidden_size)
    elif "gate.weight" in shapes:
        raise ValueError(f"{path} has a tensor gate.weight, but config.json has gate 'none': name the gate it has")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ValueError(
                f"{path}: {name} is {list(shapes[name])}, but config.json (gpm.dim {gpm.dim}, hidden size "
                f"{hidden_size}) says {list(shape)}: correct gpm.dim or restore the tensors"
            )


def _merge_adapter(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError(f"{path} is a LoRA adapter: `pip install peft` to load it") from error
    return PeftModel.from_pretrained(model, path).merge_and_unload()


def _fill_pad_token(config: PretrainedConfig, tokenizer: Any) -> None:
    """Plain `*ForSequenceClassification` classes need it to find a sample's last token in a batch."""
    if config.get_text_config().pad_token_id is None and tokenizer.pad_token_id is not None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id


def tensor_header(file: Path) -> Shapes:
    """Name and shape of every tensor in one safetensors file. Raises ValueError when it is missing or cut short."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is missing or damaged ({_one_line(error)}): copy or save it again") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint, or ValueError in one line."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist: give the directory of a GPM checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({_one_line(error)}): copy or save it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} must hold a JSON object: copy or save it again")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
