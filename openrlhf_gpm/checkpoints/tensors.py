"""Names and shapes of a checkpoint's tensors, from the headers of its safetensors files: no weight is read."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.files import one_line, read_object

Shapes = dict[str, tuple[int, ...]]
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
MISSING = "give the directory of a GPM checkpoint"
"""Remedy for a missing JSON file."""


def tensor_files(path: Path) -> list[Path]:
    """A directory's safetensors files, those of its index if it has one. Raises ValueError if there are none."""
    if (path / INDEX).exists() and (path / "model.safetensors").exists():
        raise ValueError(
            f"{path} has both model.safetensors and {INDEX}, and only one can be the model: delete the older"
        )
    if (path / INDEX).exists():
        weight_map = read_object(path / INDEX, MISSING).get("weight_map")
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


def tensor_header(file: Path) -> Shapes:
    """Name and shape of every tensor in one safetensors file. Raises ValueError if it is missing or cut short."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is missing or damaged ({one_line(error)}): copy or save it again") from error


def check_dtypes(path: Path, quantized: bool) -> None:
    """Raise ValueError for weights that are not floating point, unless config.json says how they were quantized."""
    for file in [] if quantized else tensor_files(path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                dtype = tensors.get_slice(name).get_dtype()
                if name.endswith(".weight") and dtype not in FLOATS:
                    raise ValueError(
                        f"{file}: {name} is {dtype}, but config.json has no quantization_config that says what it "
                        "means: save the model in bf16, fp16 or fp32"
                    )


def adapter_shapes(path: Path) -> Shapes:
    """Name (as in the merged model) and shape of every tensor that an adapter stores whole."""
    if (path / "adapter_model.safetensors").exists():
        shapes = tensor_header(path / "adapter_model.safetensors")
    elif (path / "adapter_model.bin").exists():  # OpenRLHF writes this one under ZeRO-3
        try:
            tensors = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
            shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        except Exception as error:  # torch, pickle and zipfile raise many kinds; weights_only never runs what it reads
            raise ValueError(
                f"{path / 'adapter_model.bin'} is damaged, or holds more than tensors: save the adapter again as "
                "safetensors"
            ) from error
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
