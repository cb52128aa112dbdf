"""Compares the numbers of exported GPMs in transformers 5 and in transformers 4. Called by `make old-transformers`.

Usage: python benchmarks/transformers4.py FOLDER, where FOLDER holds an installed transformers 4.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import make_tokenizer, trunk_config

from openrlhf_gpm.checkpoints.checkpoint import save_gpm
from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import gpm_class

LIMIT = 1e-5
ROPES = {
    "theta 500000": ("llama", {"rope_type": "default", "rope_theta": 500000.0}),
    "llama 3": (
        "llama",
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "yarn": ("qwen2", {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}),
    "part of a head": ("gpt_neox", {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}),
}
SCORE = """
import json, sys, torch, transformers
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits = model(torch.tensor([json.loads(sys.argv[2])])).logits
print(json.dumps([transformers.__version__, str(model.dtype), logits[0].tolist()]))
"""


def scored(model: Path, ids: list[int], path: str) -> tuple[str, str, torch.Tensor]:
    """Version, dtype and numbers of the plain classifier; path: PYTHONPATH."""
    argv = [sys.executable, "-c", SCORE, str(model), json.dumps(ids)]
    env = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    out = subprocess.run(argv, env=env, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(out.stderr)
    version, dtype, logits = json.loads(out.stdout.splitlines()[-1])
    return version, dtype, torch.tensor(logits)


def main() -> int:
    torch.manual_seed(0)
    worst = 0.0
    for name, (trunk, rope) in ROPES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = trunk_config(trunk, rope_parameters=rope)
            config.gpm = GPMConfig(dim=6).to_dict()
            model = gpm_class(config)(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            save_gpm(model, make_tokenizer(), Path(folder) / "gpm")
            convert(Path(folder) / "gpm", Path(folder) / "plain", "gpm", "classifier")
            ids = torch.randint(6, 320, (100,)).tolist()
            five, _, ours = scored(Path(folder) / "plain", ids, "")
            four, dtype, theirs = scored(Path(folder) / "plain", ids, sys.argv[1])
        assert (five[0], four[0], dtype) == ("5", "4", "torch.float32"), (five, four, dtype)
        difference = float((ours - theirs).abs().max())
        worst = max(worst, difference)
        print(f"{name:16} transformers {four} against {five}: largest difference {difference:.1e}")
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
