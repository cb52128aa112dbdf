"""`openrlhf-gpm embed`: the scorer's embeddings, each with its prompt and its judge; it continues where it stopped."""

import json

import pytest
import torch

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, save_gpm
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.core import group_scores
from openrlhf_gpm.scoring.embeddings import judge_of, key_of, read
from openrlhf_gpm.scoring.scorer import GPM

LINES = [
    {"id": "q1", "prompt": "Name a prime.", "responses": ["Seven.", "Nine.", "7"]},
    {"prompt": [{"role": "user", "content": "Hello"}], "responses": ["Fine.", "Grüße, 你好"]},
    {"prompt": "What is the capital of France?", "responses": ["Paris."]},
]


@pytest.fixture
def job(tmp_path, gpm_checkpoint):
    """A function that embeds LINES: exit status and output."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")

    def run(*options, model=gpm_checkpoint):
        words = ["--model", model, "--input", source, "--output", out, "--device", "cpu", *options]
        return cli.main(["embed", *map(str, words)]), out

    return run


def test_a_run_finds_the_scorers_embeddings_by_prompt(job, gpm_checkpoint, capsys):
    status, out = job()
    assert (status, capsys.readouterr().out) == (0, f"3 groups embedded: {out}\n")
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu")
    (part,) = read(out, judge_of(gpm_checkpoint), "--gpm.league")
    assert part.keys == [key_of(line["prompt"]) for line in LINES]
    found = zip(part.embeddings.split(part.sizes), part.gates_over_tau, strict=True)
    for line, (embeddings, gate_over_tau) in zip(LINES, found, strict=True):
        scores = group_scores(embeddings, gate_over_tau)
        torch.testing.assert_close(scores, gpm.scores(line["prompt"], line["responses"]), atol=1e-5, rtol=1e-5)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["q1", "1", "2"]


def test_what_score_left_is_not_continued(job, tmp_path, capsys):
    left = tmp_path / "out.jsonl.partial"
    left.write_text('{"id": "0"}\n')
    left.with_name("out.jsonl.partial.json").write_text(json.dumps({"command": "score"}))
    status, out = job()
    assert status == 2
    assert "is of another run" in (err := capsys.readouterr().err)
    assert "command was score, is embed" in err
    assert left.exists()
    assert not out.exists()


def test_embeddings_that_are_not_finite_and_pairwise_encoders_are_refused(
    job, gpm_checkpoint, chat_tokenizer, new_gpm, tmp_path, capsys
):
    model = load_gpm(gpm_checkpoint)
    model.score.weight.data[0, 0] = torch.nan
    save_gpm(model, chat_tokenizer, tmp_path / "broken")
    status, out = job(model=tmp_path / "broken")
    assert status == 2
    assert "group 'q1': the model's embeddings are not finite" in capsys.readouterr().err
    assert not out.exists()
    save_gpm(new_gpm(head="pairwise", dim=2, gate="none", normalize=False), chat_tokenizer, tmp_path / "pairwise")
    status, _ = job(model=tmp_path / "pairwise")
    assert status == 2
    assert "is a pairwise encoder, which has no embedding of a single response" in capsys.readouterr().err
