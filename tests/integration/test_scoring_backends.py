"""One model, the same groups: the command line, the Python API and vLLM say the same.

That the Ray reward actor agrees with them is test_alignment.py's.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from classifiers import GROUPS, HEADS, assert_same, read_scores, write_checkpoints, write_groups

from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.scoring.scorer import GPM


@pytest.fixture
def checkpoints(head, new_config, chat_tokenizer, tmp_path) -> tuple[Path, Path]:
    """A GPM, and as a plain classifier."""
    return write_checkpoints(head, tmp_path, new_config, chat_tokenizer)


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
