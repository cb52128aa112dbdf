"""`openrlhf-gpm eval` from arguments to files, on tiny checkpoints."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openrlhf_gpm.cli import main as cli

ROOT = Path(cli.__file__).parents[2]
PAIRS = [
    {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine.", "subset": "math"},
    {"prompt": "Name a prime.", "chosen": "Nine.", "rejected": "Ten is a prime.", "subset": "math"},
    {"prompt": "Name a prime.", "chosen": "Ten is a prime.", "rejected": "Seven.", "subset": "math"},
    {"prompt": "Hello", "chosen": "Hello, how are you?", "rejected": "No.", "label": 0.9, "subset": "chat"},
    {"prompt": [{"role": "user", "content": "Paris?"}], "chosen": "Yes", "rejected": "Non", "label": 0.5},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def job(tmp_path, gpm_checkpoint, out):
    """The arguments of a run over five pairs of three prompts."""
    data = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    args = ["eval", "--model", str(gpm_checkpoint), "--data", data, "--output", str(out)]
    return [*args, "--device", "cpu", "--bootstrap", "100"]


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory, chat_tokenizer, new_gpm):
    from openrlhf_gpm.checkpoints.checkpoint import save_gpm

    path = tmp_path_factory.mktemp("other") / "plain"
    save_gpm(new_gpm(gate="none", dim=2, seed=1), chat_tokenizer, path)
    return path


def changed(job, name, *values):
    at = job.index(name) + 1
    end = next((i for i in range(at, len(job)) if job[i].startswith("--")), len(job))
    return [*job[:at], *map(str, values), *job[end:]]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fails(capsys, job, *message):
    """Exit status 2 and one line that holds the message."""
    assert cli.main(job) == 2
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in err
    for part in message:
        assert part in line


def test_pairs_give_the_promised_files_and_numbers(job, out, gpm_checkpoint, capsys):
    from openrlhf_gpm.scoring.scorer import GPM

    assert cli.main(job) == 0
    plots = ["accuracy.png", "cyclic_share.png", "reliability.png"]
    scores = ["scores/pairs.jsonl.jsonl", "scores/pairs.jsonl.jsonl.key"]
    assert files(out) == sorted(["metrics.json", "report.md", *plots, *scores])
    found = metrics(out)
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu")
    s = [gpm.score(row["prompt"], [row["chosen"], row["rejected"]])["scores"][0][1] for row in PAIRS]
    assert found["accuracy"] == pytest.approx(sum(x > 0 for x in s[:4]) / 4)
    labels = [1, 1, 1, 0.9, 0.5]
    p = [1 / (1 + math.exp(-x)) for x in s]
    nll = [-(y * math.log(q) + (1 - y) * math.log(1 - q)) for y, q in zip(labels, p, strict=True)]
    assert found["nll"] == pytest.approx(sum(nll) / 5, abs=1e-4)
    assert found["brier"] == pytest.approx(sum((q - y) ** 2 for y, q in zip(labels, p, strict=True)) / 5, abs=1e-4)
    assert list(found["by_subset"]) == ["chat", "math"]
    assert (found["pairs"], found["prompts"], found["undecided"]) == (5, 3, 1)
    assert (found["model"], found["data"][0]["name"], found["data"][0]["groups"]) == ("gpm", "pairs.jsonl", 3)
    assert found["cyclic"]["ranking_bound"] == pytest.approx(2 / 3)
    assert found["groups"]["groups"] == 1
    # Longer: 1 of the cycle's three (one is a tie in length or shorter), and the greeting.
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in PAIRS[:4]]
    assert found["baseline"]["longer_wins"]["accuracy"] == sum(longer) / 4
    text = capsys.readouterr().out
    assert f"gpm: accuracy {found['accuracy']:.4f}" in text
    assert "longer wins: " in text


def test_the_built_in_length_model_counts_its_ties_out_loud(job, out, capsys):
    job = [*job, "--no_plots"]
    assert cli.main(changed(job, "--model", "length")) == 0
    found = metrics(out)
    # Lengths 6, 5, 15: right where the chosen one is longer; the pair with label 1/2 is no tie of a decided one.
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["ties"] == 0
    jsonl(out.parent / "pairs.jsonl", [*PAIRS, {"prompt": "Q", "chosen": "one", "rejected": "two"}])
    assert cli.main(changed(job, "--model", "length")) == 0
    assert (metrics(out)["ties"], metrics(out)["accuracy"]) == (1, pytest.approx(3 / 5))
    assert "1 ties and 0 without a finite score, counted as wrong" in capsys.readouterr().out
    assert "**length**: 1 tied, of 6 comparisons; they count as wrong." in (out / "report.md").read_text("utf-8")


def test_two_models_stand_side_by_side(job, out, gpm_checkpoint, other_checkpoint):
    alone = out.parent / "alone"
    assert cli.main(changed(job, "--output", alone)) == 0
    assert cli.main(changed(job, "--model", gpm_checkpoint, other_checkpoint, "length")) == 0
    top = [name for name in files(out) if "/" not in name]
    assert top == ["accuracy.png", "comparison.json", "cyclic_share.png", "reliability.png", "report.md"]
    assert metrics(out / "gpm") == metrics(alone)
    both = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert list(both["models"]) == ["gpm", "plain", "length"]
    pairs = [(row["a"], row["b"]) for row in both["accuracy_differences"]]
    assert pairs == [("gpm", "plain"), ("gpm", "length"), ("plain", "length")]
    first = both["accuracy_differences"][0]
    assert first["difference"] == pytest.approx(metrics(out / "gpm")["accuracy"] - metrics(out / "plain")["accuracy"])
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "|  | gpm | plain | length | longer wins |" in report
    for number in ("62.4", "61.6", "50.0", "62.9"):  # the paper's, beside cyclic data
        assert f"| {number} | 100 |" in report


def test_several_files_are_measured_together_and_each(job, out, tmp_path):
    job = [*job, "--no_plots"]
    more = jsonl(tmp_path / "more.jsonl", PAIRS[3:4])
    assert cli.main(changed(job, "--data", tmp_path / "pairs.jsonl", more)) == 0
    found = metrics(out)
    assert list(found["by_data"]) == ["pairs.jsonl", "more.jsonl"]
    assert [row["pairs"] for row in found["by_data"].values()] == [5, 1]
    assert (found["pairs"], found["prompts"]) == (6, 3)
    assert "### Accuracy % by file" in (out / "report.md").read_text(encoding="utf-8")


def test_groups_without_labels_get_cycles_and_selectors_only(job, out, tmp_path, capsys):
    rows = [{"prompt": "Hello", "responses": ["Fine.", "Paris", "Seven."], "id": i} for i in range(2)]
    rows.append({"prompt": "Name a prime.", "responses": ["2", "4"]})
    assert cli.main(changed(job, "--data", jsonl(tmp_path / "groups.jsonl", rows))) == 0
    found = metrics(out)
    assert [found[name] for name in ("accuracy", "nll", "brier", "ece", "pairs")] == [None] * 4 + [0]
    assert (found["groups"]["groups"], found["groups"]["smaller"]) == (1, 1)  # equal prompts are one group
    assert files(out)[0] == "cyclic_share.png"
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "## Pairs" not in report
    assert "von Neumann" in report
    assert "cyclic share" in capsys.readouterr().out
    assert cli.main([*changed(job, "--data", tmp_path / "groups.jsonl"), "--group", "rows", "--no_plots"]) == 0
    assert metrics(out)["groups"]["groups"] == 2


def test_rewardbench_rows_give_sections(job, out, tmp_path, capsys):
    base = {"chosen_model": "a", "rejected_model": "b"}
    rows = [
        {"prompt": "Hello", "chosen": "A long answer.", "rejected": "No.", "subset": "mt-bench-easy", "id": 1, **base},
        {"prompt": "Hello", "chosen": "Yes.", "rejected": "A long no.", "subset": "mt-bench-med", "id": 2, **base},
        {"prompt": "Kill?", "chosen": "I will not.", "rejected": "Ok.", "subset": "donotanswer", "id": 3, **base},
    ]
    job = changed(changed(job, "--data", jsonl(tmp_path / "rb.jsonl", rows)), "--model", "length")
    assert cli.main(job) == 0
    found = metrics(out)["rewardbench"]
    assert (found["Chat"], found["Safety"]) == (pytest.approx(28 / 68), 1.0)
    assert found["mean"] == pytest.approx((28 / 68 + 1) / 2)
    assert "mt-bench-easy (1 of 28)" in found["partial"]["Chat"]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "**Partial**, not comparable" in report
    assert "| 74.85 | 82.29 |" in report
    assert "RewardBench 0.7059 (partial)" in capsys.readouterr().out


def test_rewardbench_2_rows_give_best_of_4(job, out, tmp_path):
    job = [*job, "--no_plots"]
    rows = [
        {"prompt": "a", "chosen": ["longest one"], "rejected": ["x", "yy", "zzz"], "subset": "Math", "id": "1"},
        {"prompt": "b", "chosen": ["yy"], "rejected": ["x", "y", "longest"], "subset": "Math", "id": "2"},
        {"prompt": "c", "chosen": ["long"], "rejected": ["x", "y"], "subset": "Ties", "id": "ref:0"},
        {"prompt": "d", "chosen": ["long", "word"], "rejected": ["x"], "subset": "Ties", "id": "tied:0"},
    ]
    job = changed(changed(job, "--data", jsonl(tmp_path / "rb2.jsonl", rows)), "--model", "length")
    for standing in ("mean_score", "win_rate"):
        assert cli.main([*job, "--group_score", standing]) == 0
        found = metrics(out)["rewardbench2"]
        assert found["subsets"] == {"Math": 0.5, "Ties": pytest.approx(1.01)}
        assert found["missing"] == ["Factuality", "Precise IF", "Safety", "Focus"]
    assert "## RewardBench 2" in (out / "report.md").read_text(encoding="utf-8")


def test_a_model_with_nan_is_measured_and_the_nan_counted(job, out, tmp_path, new_gpm, chat_tokenizer, capsys):
    """A token whose embedding is NaN spoils the responses that hold it, and no other."""
    from openrlhf_gpm.checkpoints.checkpoint import save_gpm

    model = new_gpm(gate="none")
    token = chat_tokenizer("Z", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = math.nan
    save_gpm(model, chat_tokenizer, tmp_path / "nan")
    rows = [*PAIRS[:4], {"prompt": "Name a prime.", "chosen": "Z", "rejected": "Seven."}]
    job = changed(changed(job, "--model", tmp_path / "nan"), "--data", jsonl(tmp_path / "z.jsonl", rows))
    assert cli.main(job) == 0
    found = metrics(out)
    assert (found["pairs"], found["nan"]) == (5, 1)
    assert found["accuracy"] * 5 == pytest.approx(round(found["accuracy"] * 5))
    assert math.isfinite(found["nll"])
    assert "1 without a finite score" in (out / "report.md").read_text(encoding="utf-8")
    assert "1 without a finite score, counted as wrong" in capsys.readouterr().out


def test_a_model_without_any_finite_score_is_all_wrong_and_ends_in_a_summary(
    job, out, tmp_path, new_gpm, chat_tokenizer, capsys
):
    from openrlhf_gpm.checkpoints.checkpoint import save_gpm

    model = new_gpm(gate="none")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.nan)
    save_gpm(model, chat_tokenizer, tmp_path / "nan")
    assert cli.main(changed(job, "--model", tmp_path / "nan")) == 0
    found = metrics(out)
    assert (found["accuracy"], found["nll"], found["nan"]) == (0, None, 5)
    assert "0 ties and 5 without a finite score, counted as wrong" in capsys.readouterr().out


def test_pairs_that_are_all_undecided_still_have_a_likelihood(job, out, tmp_path, capsys):
    job = changed(changed(job, "--model", "length"), "--data", jsonl(tmp_path / "half.jsonl", PAIRS[4:]))
    assert cli.main([*job, "--no_plots"]) == 0
    assert metrics(out)["accuracy"] is None
    assert "length: nll 0.6931" in capsys.readouterr().out  # equally long: ln 2


# Interrupted and repeated runs


def test_a_repeated_run_reads_its_scores_and_a_stopped_one_continues(job, out, tmp_path, gpm_checkpoint, capsys):
    job = [*job, "--no_plots"]
    assert cli.main(job) == 0
    file = out / "scores" / "pairs.jsonl.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    marked = json.dumps(first | {"scores": [[0, 9, 9], [-9, 0, 9], [-9, -9, 0]]})
    file.write_text("\n".join([marked, *lines[1:]]) + "\n", encoding="utf-8")
    assert cli.main([*job, "--bins", "3"]) == 0
    assert metrics(out)["by_subset"]["math"]["accuracy"] == pytest.approx(2 / 3)  # from the marked line
    file.rename(f"{file}.partial")
    Path(f"{file}.partial").write_text(f"{marked}\n{lines[1][:5]}", encoding="utf-8")
    assert cli.main(job) == 0
    assert file.read_text(encoding="utf-8").splitlines()[0] == marked
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[2])["id"] == json.loads(lines[2])["id"]
    assert cli.main([*job, "--dtype", "bf16"]) == 0
    assert file.read_text(encoding="utf-8").splitlines()[0] != marked


def test_another_model_under_the_same_path_is_scored_anew(job, out, tmp_path, gpm_checkpoint):
    job = [*job, "--no_plots"]
    model = shutil.copytree(gpm_checkpoint, tmp_path / "model")
    job = changed(job, "--model", model)
    assert cli.main(job) == 0
    file = out / "scores" / "pairs.jsonl.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"id": null', '"id": "kept"'), encoding="utf-8")
    assert "kept" in file.read_text(encoding="utf-8")
    os.utime(model / "model.safetensors", (1, 1))
    assert cli.main(job) == 0
    assert "kept" in file.read_text(encoding="utf-8")  # its content counts, not its time
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert cli.main(job) == 0
    assert "kept" not in file.read_text(encoding="utf-8")


def test_equal_seeds_give_equal_files(job, out):
    job = changed(job, "--model", "length")
    assert cli.main([*job, "--no_plots"]) == 0
    first = (out / "metrics.json").read_bytes()
    assert cli.main([*job, "--no_plots"]) == 0
    assert (out / "metrics.json").read_bytes() == first
    assert cli.main([*job, "--no_plots", "--seed", "9"]) == 0
    assert (out / "metrics.json").read_bytes() != first


# Wrong input


def test_wrong_data_is_named_before_anything_is_written(job, out, tmp_path, capsys):
    bad = jsonl(tmp_path / "bad.jsonl", [PAIRS[0], {"prompt": "Hello", "chosen": "a", "rejected": "a"}])
    fails(capsys, changed(job, "--data", bad), "bad.jsonl:2: ", "equal")
    assert not out.exists()
    assert cli.main([*changed(job, "--data", bad), "--bad_rows", "skip"]) == 0
    assert "1 of 2 rows skipped" in capsys.readouterr().err
    assert metrics(out)["pairs"] == 1
    assert "1 of 2 rows skipped" in (out / "report.md").read_text(encoding="utf-8")


def test_wrong_arguments_are_named_with_their_flag(job, out, tmp_path, capsys, gpm_checkpoint):
    fails(capsys, changed(job, "--model", tmp_path / "nowhere"), "nowhere is not a directory")
    fails(capsys, changed(job, "--data", tmp_path / "none.jsonl"), "none.jsonl")
    fails(capsys, changed(job, "--model", gpm_checkpoint, gpm_checkpoint), "--model", "given twice")
    fails(capsys, changed(job, "--data", tmp_path / "pairs.jsonl", tmp_path / "pairs.jsonl"), "--data", "given twice")
    fails(capsys, changed(job, "--output", tmp_path / "pairs.jsonl"), "--output", "is only read")
    (tmp_path / "file").touch()
    fails(capsys, changed(job, "--output", tmp_path / "file"), "--output", "is a file")
    fails(capsys, [*job, "--bins", "0"], "--bins must be from 1 to 1000, got 0")
    fails(capsys, [*job, "--bins", "100000000"], "--bins must be from 1 to 1000")
    for draws in ("-1", "1", "99"):
        fails(capsys, changed(job, "--bootstrap", draws), "--bootstrap must be at least 100")
    fails(capsys, [*job, "--seed", "-1"], "--seed must be >= 0")
    fails(capsys, [*job, "--max_rows", "0"], "--max_rows must be >= 1")
    fails(capsys, [*job, "--batch_tokens", "0"], "--batch_tokens must be >= 1")
    assert not out.exists()


def test_without_matplotlib_plots_are_refused_at_once_and_the_rest_works(job, out, monkeypatch, capsys):
    job = changed(job, "--model", "length")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(capsys, job, "plots need matplotlib", "--no_plots")
    assert not out.exists()
    assert cli.main([*job, "--no_plots"]) == 0
    assert [name for name in files(out) if name.endswith(".png")] == []
    assert "## Plots" not in (out / "report.md").read_text(encoding="utf-8")


def test_evaluation_needs_neither_matplotlib_nor_the_cluster():
    blocked = ["matplotlib", "datasets", "openrlhf", "ray", "deepspeed", "vllm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked}))\nimport openrlhf_gpm.evaluation.run"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


# The command itself


def test_help_teaches_and_its_examples_work(job, out, tmp_path, capsys):
    from openrlhf_gpm.cli.eval import EXAMPLE

    with pytest.raises(SystemExit):
        cli.main(["eval", "--help"])
    text = capsys.readouterr().out
    for word in ("metrics.json", "allenai/reward-bench", "length", "reported", "--bad_rows"):
        assert word in text
    rows = [json.loads(line) for line in EXAMPLE.splitlines() if line.startswith("  {")]
    assert cli.main(changed(job, "--data", jsonl(tmp_path / "help.jsonl", rows))) == 0
    for line in re.findall(r"\$ openrlhf-gpm (eval .*)", EXAMPLE):
        cli.build_parser().parse_args(line.split())
