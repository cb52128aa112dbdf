"""`openrlhf-gpm winrate` from files to files: the scorer's numbers, each file whole, and one line for wrong input."""

import json
import shutil

import pytest
import torch

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, save_gpm
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.scoring.scorer import GPM
from openrlhf_gpm.winrate.texts import read_answers

PROMPTS = [f"Name prime {i}." for i in range(12)]
KINDS = ("even", "odd")
ANSWERS = {
    "base": lambda i: ["Seven."] if i % 2 else ["Nine is a prime."],
    "sft": lambda i: [f"{i} is a prime, thank you.", "Paris"],
    "gpo": lambda i: ["Fine."],
}


@pytest.fixture
def job(tmp_path, gpm_checkpoint):
    """A function that compares the policies: exit status and output folder."""
    files = {}
    for name, answers in ANSWERS.items():
        files[name] = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": p, "responses": answers(i), "subset": KINDS[i % 2]} for i, p in enumerate(PROMPTS)]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"

    def run(*options, model=gpm_checkpoint, answers=None):
        given = [f"{name}={file}" for name, file in files.items()] if answers is None else answers
        words = ["--model", model, "--answers", *given, "--output", out, "--device", "cpu", *options]
        return cli.main(["winrate", *map(str, words)]), out

    run.files = files
    return run


def test_the_numbers_are_the_scorers(job, gpm_checkpoint, capsys):
    status, out = job("--bootstrap", 200)
    assert status == 0
    assert sorted(file.name for file in out.iterdir()) == ["metrics.json", "prompts.jsonl", "report.html"]
    metrics = json.loads((out / "metrics.json").read_text())
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu")
    expected = torch.zeros(3, 3)
    for i, prompt in enumerate(PROMPTS):
        answers = [make(i) for make in ANSWERS.values()]
        probs = torch.tensor(gpm.score(prompt, [text for each in answers for text in each])["probs"])
        sizes = [len(each) for each in answers]
        blocks = [[part.mean() for part in row.split(sizes, 1)] for row in probs.split(sizes)]
        expected += torch.tensor(blocks) / len(PROMPTS)
    expected.fill_diagonal_(0.5)
    torch.testing.assert_close(torch.tensor(metrics["win_rates"]), expected, atol=1e-5, rtol=0)
    assert metrics["policies"] == list(ANSWERS)
    assert (metrics["prompts"], metrics["answers"]) == (12, [12, 24, 12])
    low, high = metrics["ci95"][0][1]
    assert low < metrics["win_rates"][0][1] < high
    assert metrics["n_eff"][0][2] == pytest.approx(12)  # one answer each
    assert 12 < metrics["n_eff"][0][1] == pytest.approx(metrics["n_eff"][1][0])
    assert metrics["settings"]["bootstrap"] == 200
    assert sum(metrics["von_neumann"]) == pytest.approx(1)
    printed = capsys.readouterr().out
    assert f"over 12 prompts\n{'':4}" in printed
    assert f"{100 * metrics['win_rates'][0][1]:.1f} [" in printed
    assert printed.endswith(f"report: {out / 'report.html'}\n")


def test_each_prompt_has_a_row_with_who_wins_and_by_how_much(job):
    _, out = job()
    rows = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    metrics = json.loads((out / "metrics.json").read_text())
    mean = torch.tensor([row["win_rates"] for row in rows], dtype=torch.float64).mean(0)
    torch.testing.assert_close(mean, torch.tensor(metrics["win_rates"], dtype=torch.float64))
    assert [row["subset"] for row in rows] == [*KINDS] * 6
    for kind, found in metrics["by_subset"].items():
        of_kind = torch.tensor([row["win_rates"] for row in rows if row["subset"] == kind], dtype=torch.float64)
        assert found["prompts"] == len(of_kind) == 6
        torch.testing.assert_close(torch.tensor(found["win_rates"], dtype=torch.float64), of_kind.mean(0))
    for row in rows:
        means = [(sum(line) - 0.5) / 2 for line in row["win_rates"]]
        assert row["win_rate"] == pytest.approx(max(means))
        assert row["best"] == list(ANSWERS)[means.index(max(means))]
    assert rows[1]["lengths"] == [6, (len("1 is a prime, thank you.") + 5) / 2, 5]


def test_a_policy_against_itself_is_a_tie_on_every_prompt(job, capsys):
    file = job.files["base"]
    status, out = job(answers=[f"a={file}", f"b={file}"])
    assert status == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["win_rates"] == [[0.5, 0.5], [0.5, 0.5]]
    assert metrics["ci95"][0][1] == [0.5, 0.5]
    assert metrics["length_controlled"]["win_rates"][0][1] == 0.5
    assert metrics["elo"] == [1000, 1000]
    assert metrics["n_eff"] == [[None, None], [None, None]]
    assert {json.loads(line)["best"] for line in (out / "prompts.jsonl").read_text().splitlines()} == {None}
    assert "No policy beats all others." in capsys.readouterr().out


def test_what_is_left_out_is_said_on_stderr_and_in_the_metrics(job, capsys):
    lines = job.files["gpo"].read_text().splitlines(keepends=True)
    job.files["gpo"].write_text("".join(lines[:8]))
    status, out = job()
    assert status == 0
    err = capsys.readouterr().err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["ci95"] is metrics["elo_ci95"] is metrics["length_controlled"]["ci95"] is metrics["n_eff"] is None
    for said in (
        "base: 4 of its 12 prompts are left out",
        "8 common prompts are too few for intervals: give at least 10",
        "base and gpo are not compared at equal length: one's answers are longer to every prompt",
    ):
        assert f"warning: {said}" in err
        assert any(warning.startswith(said) for warning in metrics["warnings"])
    assert metrics["length_controlled"]["win_rates"][0][2] is None


def test_what_is_exported_for_alpaca_eval_is_read_back_as_the_same_answers(job, tmp_path):
    status, out = job("--export", "alpaca_eval")
    assert status == 0
    rows = json.loads((out / "alpaca_eval" / "sft.json").read_text())
    assert rows[1] == {"instruction": PROMPTS[1], "output": "1 is a prime, thank you.", "generator": "sft"}
    assert sorted(file.name for file in (out / "alpaca_eval").iterdir()) == ["base.json", "gpo.json", "sft.json"]
    answers = [read_answers("a", file) for file in (out / "alpaca_eval" / "gpo.json", job.files["gpo"])]
    assert [[answered.texts for answered in each.by_prompt.values()] for each in answers] == [[["Fine."]] * 12] * 2


@pytest.mark.parametrize(
    ("name", "prompt", "said"),
    [
        ("a/b", "p", "'a/b' cannot be the name of a file"),
        (
            "a",
            [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
            "m.jsonl:1: AlpacaEval knows one",
        ),
    ],
)
def test_what_alpaca_eval_could_not_read_is_refused(job, tmp_path, capsys, name, prompt, said):
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": prompt, "response": "x"}) + "\n")
    status, out = job("--export", "alpaca_eval", answers=[f"{n}={tmp_path / 'm.jsonl'}" for n in (name, "other")])
    assert status == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


WRONG = {
    "one policy": (["a={base}"], "give two or more NAME=FILE"),
    "no name": (["{base}", "b={sft}"], "give a name and a file, NAME=FILE"),
    "twice": (["a={base}", "a={sft}"], "the name 'a' is given twice"),
    "no file": (["a={base}", "b=missing.jsonl"], "missing.jsonl does not exist: correct the path"),
    "other prompts": (["a={base}", "b={other}"], "no prompt is in all files (a has 12, b has 1)"),
    "no answers": (["a={base}", "b={pairs}"], "pairs.jsonl:1: column 'response' is missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answers_are_one_line_and_leave_nothing(job, tmp_path, capsys, case):
    (tmp_path / "other.jsonl").write_text('{"prompt": "else", "response": "x"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "x", "rejected": "y"}\n')
    given, said = WRONG[case]
    names = job.files | {"other": tmp_path / "other.jsonl", "pairs": tmp_path / "pairs.jsonl"}
    status, out = job(answers=[word.format(**names) for word in given])
    assert status == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_a_folder_with_something_in_it_and_a_pairwise_judge_are_refused(
    job, tmp_path, chat_tokenizer, new_gpm, capsys
):
    save_gpm(new_gpm(head="pairwise", dim=2, gate="none", normalize=False), chat_tokenizer, tmp_path / "pairwise")
    assert job(model=tmp_path / "pairwise")[0] == 2
    assert "is a pairwise encoder" in capsys.readouterr().err
    out = tmp_path / "out"
    out.mkdir()
    assert job()[0] == 0  # an empty folder is taken
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert job()[0] == 2
    assert "exists and is not an empty directory" in capsys.readouterr().err
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}
    shutil.rmtree(out)
    capsys.readouterr()
    for few in (-1, 99):
        assert job("--bootstrap", few)[0] == 2
        assert "--bootstrap must be at least 100, for the ends of an interval, or 0" in capsys.readouterr().err


def test_embeddings_that_are_not_finite_name_the_first_place(job, gpm_checkpoint, chat_tokenizer, tmp_path, capsys):
    model = load_gpm(gpm_checkpoint)
    model.score.weight.data[0, 0] = torch.nan
    save_gpm(model, chat_tokenizer, tmp_path / "broken")
    status, out = job(model=tmp_path / "broken")
    assert status == 2
    assert "base.jsonl:1: the model's embeddings are not finite" in capsys.readouterr().err
    assert not out.exists()
