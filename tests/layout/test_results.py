"""docs/results.md and the README say what the stored results say."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, "examples/smollm2")
from tables import compare, markdown

RESULTS = sorted(Path("docs/results").glob("*.json"))
PAGE = Path("docs/results.md").read_text(encoding="utf-8")


def rows_of(name):
    return {row["row"]: row for row in json.loads(Path(f"docs/results/{name}.json").read_text(encoding="utf-8"))}


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_page_shows_the_stored_table(file):
    assert markdown(json.loads(file.read_text(encoding="utf-8"))) in PAGE


def test_there_are_stored_tables():
    assert RESULTS


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_each_stored_row_says_of_how_many_and_when(file):
    text = file.read_text(encoding="utf-8")
    for row in json.loads(text):
        assert row["comparisons"] >= row["prompts"] > 0
        beside = isinstance(row["accuracy"], list)  # of two models and "longer wins"
        accuracies = row["accuracy"] if beside else [row["accuracy"]]
        intervals = row["accuracy_ci95"] if beside else [row["accuracy_ci95"]]
        assert all(low < accuracy < high for accuracy, (low, high) in zip(accuracies, intervals, strict=True))
        assert row["date"] >= "2026-11-21"
    assert not re.search(r'[ "]/', text)  # no path of the machine it ran on


def test_the_rows_on_new_prompts_are_the_stored_ones():
    (line,) = re.findall(
        r"^\| .*\[prompts it has never seen\].*$", Path("README.md").read_text(encoding="utf-8"), re.M
    )
    rows = rows_of("cycles")
    bt, gpm = (rows[f"cyc3_train, {model}"] for model in ("bt", "gpm"))
    (first,) = re.findall(r"^\| .*prompts that it has never seen.*$", PAGE, re.M)
    for row in (bt, gpm):
        low, high = row["accuracy_ci95"]
        for shown in (line, first):
            assert f"{row['accuracy']:.2f} [{low:.2f}, {high:.2f}]" in shown
            assert f"exceeds {gpm['bound']:.2f}" in shown


@pytest.mark.parametrize(
    ("row", "column", "by", "same"),
    [
        ("gpm on frozen half way up, mean", "nll", 0.005, True),
        ("gpm on frozen half way up, mean", "nll", 0.02, False),
        ("gpm on frozen half way up, mean", "accuracy", -0.02, False),
        ("bt on frozen half way up, mean", "nll", 0.02, False),
        ("bt on frozen half way up, mean", "accuracy", 0.05, True),  # of equal rewards: rounding decides
    ],
)
def test_a_row_that_is_computed_again_is_compared_by_loss_and_accuracy(row, column, by, same):
    published = rows_of("probe")[f"cyc3_train, {row}"]
    assert compare([{**published, column: published[column] + by}], [published]) is same
