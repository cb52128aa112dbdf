"""Scoring in several processes."""

import json
import multiprocessing
from functools import partial

import pytest
import torch

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, save_gpm
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.cli.score import to_lines
from openrlhf_gpm.cli.workers import score_in_processes, worker_devices
from openrlhf_gpm.data import Group
from openrlhf_gpm.scoring.scorer import GPM

GROUPS = [
    Group("Name a prime.", ["Seven.", "Nine. " * (i % 5 + 1), "7"], f"q{i}" if i % 2 else None) for i in range(30)
]


def test_every_worker_has_a_gpu_to_itself_or_shares_the_cpu():
    assert worker_devices(None, 3, gpus=0) == ["cpu"] * 3
    assert worker_devices(None, 2, gpus=4) == ["cuda:0", "cuda:1"]
    assert worker_devices("cuda", 2, gpus=2) == ["cuda:0", "cuda:1"]
    assert worker_devices("cpu", 2, gpus=2) == ["cpu"] * 2
    assert worker_devices("cuda:1", 1, gpus=2) == ["cuda:1"]
    assert worker_devices(None, 1, gpus=1) == ["cuda"]


def test_too_many_workers_are_refused():
    with pytest.raises(ValueError, match="--workers must be >= 1, got 0"):
        worker_devices(None, 0, gpus=0)
    with pytest.raises(ValueError, match="--workers 3: there are 2 GPUs"):
        worker_devices(None, 3, gpus=2)
    with pytest.raises(ValueError, match="--device cuda:1 is one GPU for 2 workers"):
        worker_devices("cuda:1", 2, gpus=2)


@pytest.fixture
def job(tmp_path, gpm_checkpoint):
    """A function that scores GROUPS with a model and more options: exit status and output."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"id": g.id, "prompt": g.prompt, "responses": g.responses}) + "\n" for g in GROUPS)
    )

    def run(*options, model=gpm_checkpoint):
        words = ["--model", model, "--input", source, "--output", out, "--device", "cpu", *options]
        return cli.main(["score", *map(str, words)]), out

    return run


def test_two_workers_give_what_one_gives_in_the_order_of_the_input(job, gpm_checkpoint, tmp_path):
    status, out = job("--workers", 2)
    assert status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    expected = GPM.from_pretrained(gpm_checkpoint, device="cpu").score_groups(GROUPS)
    for line, result in zip(out.read_text().splitlines(), expected, strict=True):
        written = json.loads(line)
        assert list(written) == list(result)
        assert written["id"] == result["id"]
        torch.testing.assert_close(torch.tensor(written["scores"]), torch.tensor(result["scores"]), atol=1e-5, rtol=0)


def test_what_a_worker_raises_ends_the_run_with_its_message(job, gpm_checkpoint, chat_tokenizer, tmp_path, capsys):
    model = load_gpm(gpm_checkpoint)
    model.score.weight.data[0, 0] = torch.nan
    save_gpm(model, chat_tokenizer, tmp_path / "broken")
    status, out = job("--workers", 2, model=tmp_path / "broken")
    assert status == 2
    assert "error: group '0': the model's embeddings are not finite" in capsys.readouterr().err
    assert not out.exists()
    assert not multiprocessing.active_children()


def test_workers_that_die_end_the_run_with_a_hint(gpm_checkpoint):
    load = partial(GPM.from_pretrained, gpm_checkpoint)
    lines = score_in_processes(load, to_lines, GROUPS * 50, ["cpu"] * 2, shard=2)
    assert json.loads(next(lines))["id"] == "0"
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(ValueError, match=r"a worker process died .* fewer --workers"):
        list(lines)
