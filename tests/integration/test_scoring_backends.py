"""One model, the same groups: the command line, the Python API and vLLM say the same.

That the Ray reward actor agrees with them is test_alignment.py's.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openrlhf_gpm.checkpoints.checkpoint import save_gpm
from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.scoring.scorer import GPM

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


@pytest.fixture
def checkpoints(head, new_config, chat_tokenizer, tmp_path) -> tuple[Path, Path]:
    """A GPM whose heads are 32 wide, the least that vLLM's CPU attention knows; and as a plain classifier."""
    torch.manual_seed(0)
    config = new_config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    config.gpm = GPMConfig(**HEADS[head]).to_dict()
    model = gpm_class(config)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_gpm(model, chat_tokenizer, tmp_path / "gpm")
    convert(tmp_path / "gpm", tmp_path / "classifier", "gpm", "classifier")
    return tmp_path / "gpm", tmp_path / "classifier"


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


@pytest.mark.parametrize(
    ("head", "share_prompt"),
    [
        ("gated", "auto"),
        ("gated", "off"),
        ("ungated", "auto"),
        ("ungated", "off"),
        ("reward", "auto"),
        ("pairwise", "auto"),
    ],
)
def test_the_command_line_the_python_api_and_vllm_agree(checkpoints, share_prompt, cpu_env, tmp_path):
    own, classifier = checkpoints
    gpm = GPM.from_pretrained(own, device="cpu", share_prompt="off")
    expected = [
        gpm.score(group["prompt"], group["responses"], group.get("id", str(i))) for i, group in enumerate(GROUPS)
    ]
    assert max(max(map(max, result["scores"])) for result in expected) > 0.01

    files = write_groups(tmp_path)
    assert cli.main(["score", "--model", str(own), "--share_prompt", share_prompt, *files]) == 0
    assert_same(read_scores(tmp_path), expected)

    (tmp_path / "scores.jsonl").unlink()
    command = [sys.executable, "-m", "openrlhf_gpm.cli.main", "score", "--model", str(classifier), *files]
    command += ["--backend", "vllm", "--share_prompt", share_prompt]
    done = subprocess.run(command, env=cpu_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(read_scores(tmp_path), expected)


@pytest.mark.parametrize("head", HEADS)
def test_the_classifier_needs_nothing_of_ours(checkpoints):
    from transformers import AutoModelForSequenceClassification

    own, classifier = checkpoints
    gpm = GPM.from_pretrained(own, device="cpu")
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    assert type(model).__module__.startswith("transformers.")
    sample = gpm.formatter.encode("Hello", "Fine.")
    with torch.no_grad():
        out = model(torch.tensor([sample.input_ids])).logits[:, : gpm.config.head_rows]
    v, _ = gpm.embed(["Hello"], ["Fine."])
    expected = v[:, :1] if gpm.config.scalar_head else v
    got = torch.nn.functional.normalize(out, dim=-1) if gpm.config.normalize else out
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
