"""A GPM as itself and as a plain classifier, and the groups that the ways of scoring it are compared on."""

import json
from pathlib import Path

import torch

from openrlhf_gpm.checkpoints.checkpoint import save_gpm
from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import gpm_class

GROUPS = [
    {"id": "q1", "prompt": "Name a prime. " * 12, "responses": ["Seven.", "Nine.", "7", "Seven is a prime. " * 5]},
    {"prompt": [{"role": "user", "content": "Hello"}], "responses": ["Fine.", ""]},
    {"id": 7, "prompt": "What is the capital of France? " * 8, "responses": ["Paris."]},
    {"prompt": "Hello, how are you? " * 9, "responses": ["Fine, thank you.", "Fine, thanks.", "No."]},
]
HEADS = {
    "gated": {"dim": 6, "gate": "softmax_scaled"},
    "ungated": {"dim": 6, "gate": "none"},
    "reward": {"head": "reward", "dim": 2, "gate": "none", "normalize": False, "tau": 1.0},
    "pairwise": {"head": "pairwise", "dim": 2, "gate": "none", "normalize": False, "tau": 1.0},
}


def write_checkpoints(head: str, folder: Path, new_config, tokenizer) -> tuple[Path, Path]:
    """A GPM whose heads are 32 wide, the least that vLLM's CPU attention knows; and as a plain classifier."""
    torch.manual_seed(0)
    config = new_config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    config.gpm = GPMConfig(**HEADS[head]).to_dict()
    model = gpm_class(config)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_gpm(model, tokenizer, folder / "gpm")
    convert(folder / "gpm", folder / "classifier", "gpm", "classifier")
    return folder / "gpm", folder / "classifier"


def write_groups(folder: Path) -> list[str]:
    """The options of `score` that name input and output in a folder."""
    (folder / "groups.jsonl").write_text("".join(json.dumps(group) + "\n" for group in GROUPS))
    return ["--input", f"{folder}/groups.jsonl", "--output", f"{folder}/scores.jsonl", "--device", "cpu"]


def read_scores(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def assert_same(results: list[dict], expected: list[dict]) -> None:
    for result, other in zip(results, expected, strict=True):
        assert list(result) == list(other)
        for name, value in other.items():
            if name in ("id", "ranking") or value is None:
                assert result[name] == value, name
            elif name != "von_neumann":  # not a continuous function of the scores
                torch.testing.assert_close(torch.tensor(result[name]), torch.tensor(value), atol=1e-4, rtol=0)
