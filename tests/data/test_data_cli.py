"""`openrlhf-gpm data`: what each action writes, prints and refuses."""

import json
import os

import pytest

from openrlhf_gpm.cli.main import main
from openrlhf_gpm.data import Comparison, merge_prompts, read_preferences

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairs(count=40):
    """Three comparisons of each of `count` prompts, a cycle."""
    return [
        {"prompt": f"p{i}", "chosen": f"{a}{i}", "rejected": f"{b}{i}", "id": f"{i}{a}"}
        for i in range(count)
        for a, b in ("AB", "BC", "CA")
    ]


def run(capsys, *argv):
    """(exit status, stdout, stderr) of `openrlhf-gpm data ...`."""
    status = main(["data", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def refuse(capsys, folder, *argv):
    """The one line with which the command ends; no file was added or changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return err


def test_check_prints_what_is_in_each_file(tmp_path, capsys):
    first, second = write(tmp_path / "a.jsonl", pairs(4)), write(tmp_path / "b.jsonl", pairs(2))
    status, out, err = run(capsys, "check", first, second)
    assert (status, err) == (0, "")
    one, two = out.split(f"{second}\n")
    table, example = one.split("  example, ")
    table = dict(line.strip().split("  ", 1) for line in table.splitlines()[1:])
    assert {name: value.strip() for name, value in table.items()} == {
        "rows": "12",
        "forms": "prompt/chosen/rejected 12",
        "groups": "12",
        "comparisons": "12",
        "prompts": "4",
        "responses per prompt": "4 with 3",
        "prompts with a cycle": "4",
        "labels": "1: 12",
        "longer wins": "nothing to compare",
        "prompt characters": "5%: 2, 50%: 2, 95%: 2, most: 2",
        "response characters": "5%: 2, 50%: 2, 95%: 2, most: 2",
        "bad rows": "0",
    }
    assert example == f"{first}:1\n    prompt    'p0'\n    preferred 'A0'\n    other     'B0'\n"
    assert f"shared prompts        2 with {first}" in two


def test_check_lists_bad_rows_and_ends_with_1(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [GOOD, GOOD | {"chosen": ""}, "{", *[GOOD | {"label": 2}] * 30])
    status, out, err = run(capsys, "check", path)
    assert (status, err) == (1, "")
    assert "  bad rows              32\n" in out
    assert f"    {path}:2: 'chosen' is an empty response; drop the row or fill it\n" in out
    assert f"    {path}:3: not valid JSON" in out
    assert "    and 12 more\n" in out
    assert "    in all: 30 label outside [0, 1], 1 empty response, 1 not JSON\n" in out


def test_check_of_bad_rows_only_still_tells_them(tmp_path, capsys):
    status, out, _ = run(capsys, "check", write(tmp_path / "a.jsonl", ["{", "3"]))
    assert status == 1
    assert "  groups                0\n" in out


def test_check_takes_other_names_and_a_limit_of_length(tmp_path, capsys):
    row = {"question": "q", "better": "a" * 9, "worse": "b"}
    keys = ["--prompt_key", "question", "--chosen_key", "better", "--rejected_key", "worse"]
    path = write(tmp_path / "a.jsonl", [row])
    assert run(capsys, "check", path)[0] == 1
    assert run(capsys, "check", path, *keys, "--max_chars", 10)[0] == 0
    status, out, _ = run(capsys, "check", path, *keys, "--max_chars", 9)
    assert status == 1
    assert "prompt and response have 10 characters, more than 9" in out


def test_split_puts_every_row_on_one_side_by_its_prompt(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", pairs())
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    status, out, err = run(capsys, "split", source, "--fraction", 0.25, "--train", train, "--held_out", held_out)
    assert (status, err) == (0, "")
    sides = [rows_of(train), rows_of(held_out)]
    assert sorted(row["id"] for side in sides for row in side) == sorted(row["id"] for row in pairs())
    prompts = [{row["prompt"] for row in side} for side in sides]
    assert not prompts[0] & prompts[1]
    assert out == "".join(
        f"{path}: {3 * len(some)} rows, {len(some)} prompts\n"
        for path, some in zip((train, held_out), prompts, strict=True)
    )
    assert 3 <= len(prompts[1]) <= 17
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held_out.jsonl", "in.jsonl", "train.jsonl"]


def test_merge_makes_one_group_of_each_prompt(tmp_path, capsys):
    source, out = write(tmp_path / "in.jsonl", pairs(3)), tmp_path / "groups.jsonl"
    status, said, _ = run(capsys, "merge", source, "--output", out)
    assert status == 0
    assert said == f"{out}: 3 groups from 9 rows; 9 responses to encode instead of 18\n"
    assert rows_of(out)[1] == {
        "id": "1A",
        "prompt": "p1",
        "responses": ["A1", "B1", "C1"],
        "comparisons": [[0, 1], [1, 2], [2, 0]],
    }


def test_what_merge_writes_can_be_read_however_large_a_group_is(tmp_path, capsys):
    rows = [{"prompt": "p", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(501)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "groups.jsonl"
    assert run(capsys, "merge", source, "--output", out)[0] == 0
    status, said, _ = run(capsys, "check", out)
    assert status == 0
    assert "1 with 1002" in said


def test_split_can_take_groups_apart_into_pairs(tmp_path, capsys):
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]}
    source = write(tmp_path / "in.jsonl", [row | {"prompt": f"p{i}"} for i in range(30)])
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    assert run(capsys, "split", source, "--pairs", "--train", train, "--held_out", held_out)[0] == 0
    assert len(rows_of(train)) + len(rows_of(held_out)) == 90
    assert rows_of(train)[2] == {"prompt": "p0", "chosen": "b", "rejected": "c", "label": 0.5}


def test_skipped_rows_are_reported(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [GOOD, "{", GOOD | {"chosen": "c"}])
    out = tmp_path / "out.jsonl"
    status, said, _ = run(capsys, "merge", source, "--output", out, "--bad_rows", "skip")
    assert status == 0
    assert said.startswith(f"1 of 3 rows skipped: 1 not JSON ({source}:2)\n")
    assert len(rows_of(out)) == 1


def ultrafeedback(i):
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    ratings = [[5 if a == b else 1 + (i + a + b) % 2 for b in range(4)] for a in range(4)]
    completions = [
        {"response": f"{text}{i}", "annotations": {n: {"Rating": str(x)} for n, x in zip(names, row, strict=True)}}
        for text, row in zip("ABCD", ratings, strict=True)
    ]
    return {"instruction": f"p{i}", "completions": completions}


def test_cyclic_writes_one_set_for_each_omitted_attribute(tmp_path, capsys):
    source, out = write(tmp_path / "rated.jsonl", map(ultrafeedback, range(5))), tmp_path / "deep" / "cyclic"
    status, said, _ = run(capsys, "cyclic", "--input", source, "--output", out)
    assert status == 0
    names = [f"no_{name}.jsonl" for name in ("instruction_following", "honesty", "truthfulness", "helpfulness")]
    assert said == "".join(f"{out / name}: 5 rows, 5 cycles from 5 prompts\n" for name in names)
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    groups = [group for _, group in read_preferences(out / "no_honesty.jsonl")]
    assert [group.prompt for group in groups] == [f"p{i}" for i in range(5)]
    assert {(group.subset, *group.comparisons) for group in groups} == {
        ("no_honesty", Comparison(0, 1), Comparison(1, 2), Comparison(2, 0))
    }
    assert run(capsys, "cyclic", "--input", source, "--output", out, "--pairs")[0] == 0
    assert len(rows_of(out / "no_honesty.jsonl")) == 15


def test_cyclic_takes_other_attributes(tmp_path, capsys):
    ratings = {name: [9 if i == j else 1 for j in range(4)] for i, name in enumerate("wxyz")}
    source = write(tmp_path / "rated.jsonl", [{"prompt": "p", "responses": [*"ABCD"], "ratings": ratings}])
    out = tmp_path / "out"
    assert run(capsys, "cyclic", "--input", source, "--output", out, "--attributes", *"wxyz")[0] == 0
    assert rows_of(out / "no_w.jsonl")[0]["responses"] == ["B", "C", "D"]
    err = refuse(capsys, tmp_path, "cyclic", "--input", source, "--output", out, "--attributes", "a/b", *"xyz")
    assert "--attributes: 'a/b' cannot be part of a file name" in err
    err = refuse(capsys, tmp_path, "cyclic", "--input", source, "--output", out)
    assert f"{source}:1: there is no rating of 'honesty' (rated: w, x, y, z)" in err


def test_cycle_goes_over_the_models_of_a_file_of_groups(tmp_path, capsys):
    rows = [{"id": i, "prompt": f"p{i}", "responses": [f"{m}{i}" for m in "ABCDE"]} for i in range(20)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert run(capsys, "cycle", "--groups", source, "--length", 4, "--output", out)[0] == 0
    assert rows_of(out)[1] == {
        "id": 1,
        "subset": "cycle4",
        "prompt": "p1",
        "responses": ["A1", "B1", "C1", "D1"],
        "comparisons": [[0, 1], [1, 2], [2, 3], [3, 0]],
    }
    argv = ["cycle", "--groups", source, "--length", 5, "--output", out, "--full", "--random_direction"]
    assert run(capsys, *argv, "--pairs", "--seed", 3)[0] == 0
    assert len(rows_of(out)) == 200
    groups = merge_prompts(group for _, group in read_preferences(out))
    firsts = {
        group.responses[group.comparisons[0].first][0] + group.responses[group.comparisons[0].second][0]: group
        for group in groups
    }
    assert set(firsts) == {"AB", "BA"}
    assert {group.subset for group in groups} == {"cycle5_full_random_direction"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["split", "in.jsonl", "--train", "t", "--held_out", "h", "--fraction", "1.5"], "--fraction must be above 0"),
        (["split", "in.jsonl", "--train", "t", "--held_out", "h", "--fraction", "nan"], "--fraction must be above 0"),
        (["split", "in.jsonl", "--train", "t", "--held_out", "./t"], "--held_out t is --train: give another name"),
        (["split", "in.jsonl", "--train", "in.jsonl", "--held_out", "h"], "--train in.jsonl is the input in.jsonl"),
        (["split", "in.jsonl", "--train", "no/t", "--held_out", "h"], "the folder no does not exist, create it first"),
        (["split", "in.jsonl", "--train", ".", "--held_out", "h"], "--train . is a folder: give a file name"),
        (
            ["split", "one.jsonl", "--train", "t", "--held_out", "h"],
            "no prompt falls to --held_out: give another --se",
        ),
        (["split", "absent.jsonl", "--train", "t", "--held_out", "h"], "absent.jsonl"),
        (["split", "in.jsonl", "--train", "t", "--held_out", "h", "--max_chars", "0"], "--max_chars must be >= 1"),
        (["merge", "bad.jsonl", "--output", "o"], "bad.jsonl:2: 'chosen' is an empty response"),
        (["merge", "only_bad.jsonl", "--output", "o", "--bad_rows", "skip"], "only_bad.jsonl: every row is bad; see"),
        (["cycle", "--groups", "in.jsonl", "--length", "2", "--output", "o"], "at least 3 responses, got 2"),
        (["cycle", "--groups", "in.jsonl", "--length", "4", "--full", "--output", "o"], "got 4; try 5"),
        (["cycle", "--groups", "in.jsonl", "--length", "3", "--output", "o"], "in.jsonl:1: 'responses' is missing"),
        (["cyclic", "--input", "in.jsonl", "--output", "o"], "in.jsonl:1: the responses are not rated"),
        (["cyclic", "--input", "flat.jsonl", "--output", "o"], "hold no cycle for the set no_instruction_following"),
        (["cyclic", "--input", "flat.jsonl", "--output", "bad.jsonl"], "--output bad.jsonl is a file: give a folder"),
        (["cyclic", "--input", "flat.jsonl", "--output", "o", "--attributes", "x", "y"], "at least 4 different attri"),
        (["merge", "in.jsonl", "--output", "pipe"], "--output pipe is not a regular file"),
        (["check", "."], ". is a folder: give files"),
        (["check", "nul\0.jsonl"], "null byte"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", pairs(3))
    write(tmp_path / "one.jsonl", pairs(1))
    write(tmp_path / "bad.jsonl", [GOOD, GOOD | {"chosen": ""}])
    write(tmp_path / "only_bad.jsonl", ["{"])
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    write(
        tmp_path / "flat.jsonl",
        [{"prompt": "p", "responses": [*"ABC"], "ratings": {name: [1, 1, 1] for name in names}}],
    )
    os.mkfifo(tmp_path / "pipe")
    assert message in refuse(capsys, tmp_path, *argv)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("action", ["check", "split", "merge", "cyclic", "cycle"])
def test_every_action_explains_itself(capsys, action):
    with pytest.raises(SystemExit, match="0"):
        main(["data", action, "--help"])
    assert f"openrlhf-gpm data {action}" in capsys.readouterr().out


def test_help_teaches_with_examples_that_parse(capsys):
    from openrlhf_gpm.cli.main import build_parser

    with pytest.raises(SystemExit, match="0"):
        main(["data", "--help"])
    pages = [capsys.readouterr().out]
    for action in ("check", "split", "merge", "cyclic", "cycle"):
        with pytest.raises(SystemExit, match="0"):
            main(["data", action, "--help"])
        pages.append(capsys.readouterr().out.split("example", 1)[-1])
    commands = {line.strip().removeprefix("$ ") for page in pages for line in page.splitlines()}
    commands = {line for line in commands if line.startswith("openrlhf-gpm data ")}
    assert len(commands) >= 10
    for command in commands:
        build_parser(["data"]).parse_args(command.split()[1:])
