"""What several benchmarks share: SmolLM2-135M as a GPM and as OpenRLHF's reward model, and token ids for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from openrlhf_gpm.checkpoints.checkpoint import load_gpm
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.samples.formatting import Encoded

OUTPUTS = Path("outputs/benchmarks")
DIM = 8


def base_model() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder, converted at the first use (examples/smollm2/model.py)."""
    folder = Path("outputs/smollm2/model")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "examples/smollm2/model.py", str(folder)], check=True)
    return folder


def checkpoints(root: Path = OUTPUTS / "models") -> dict[str, Path]:
    """Folders of one trunk under three heads: `gpm` (ungated), `bt` (OpenRLHF's, the GPM's first row), `pairwise`."""
    base = base_model()
    paths = {name: root / name for name in ("gpm", "bt", "pairwise")}
    if all((path / "model.safetensors").exists() for path in paths.values()):
        return paths
    trunk = {name: tensor for name, tensor in load_file(base / "model.safetensors").items() if "lm_head" not in name}
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    torch.manual_seed(0)
    head = torch.randn(DIM, config["hidden_size"]) / (config["hidden_size"] + 1)
    scalar = {"dim": 2, "gate": "none", "normalize": False, "tau": 1.0}
    gpm = {"dim": DIM, "gate": "none", "normalize": False, "tau": 1.0}
    extra = {
        "gpm": {"gpm": GPMConfig(**gpm).to_dict(), "num_labels": DIM},
        "bt": {"num_labels": 1, "value_head_prefix": "score"},
        "pairwise": {"gpm": GPMConfig(head="pairwise", **scalar).to_dict(), "num_labels": 1},
    }
    for name, path in paths.items():
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config | extra[name]))
        rows = head if name == "gpm" else head[:1]
        save_file(trunk | {"score.weight": rows.contiguous()}, path / "model.safetensors", {"format": "pt"})
        for file in (*base.glob("tokenizer*"), *base.glob("chat_template*")):
            (path / file.name).write_bytes(file.read_bytes())
    return paths


def load_gpm_fp32(path: Path) -> Any:
    return load_gpm(path, dtype=torch.float32, attn_implementation="sdpa")


def load_bt(path: Path) -> Any:
    """OpenRLHF's own reward model, as its reward actor builds it."""
    from openrlhf.models import get_llm_for_sequence_regression

    model = get_llm_for_sequence_regression(
        str(path), "reward", attn_implementation="sdpa", param_dtype="fp32", value_head_prefix="score"
    )
    return model.eval()


def random_group(prompt: int, response: int, k: int, seed: int = 0) -> list[Encoded]:
    """K samples of `prompt` shared tokens and `response` own ones; token ids without meaning."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(100, 40000, (prompt,), generator=generator).tolist()
    own = torch.randint(100, 40000, (k, response), generator=generator)
    own[:, 0] = 100 + torch.arange(k)  # the group shares the prompt and nothing more
    return [Encoded(shared + row.tolist(), prompt) for row in own]
