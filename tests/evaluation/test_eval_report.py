"""report.md and the plots: what is said, and that the numbers are those of the metrics."""

import math
import re
import struct

import numpy as np
import pytest

from openrlhf_gpm.data import Comparison, PreferenceGroup
from openrlhf_gpm.evaluation import plots, report
from openrlhf_gpm.evaluation.dataset import Dataset, merged
from openrlhf_gpm.evaluation.run import Settings, compare, evaluate, longer_wins, run


def dataset(*rows, name="d"):
    groups, places = merged(rows)
    return Dataset(name, f"folder/{name}", list(rows), groups, places)


def cycle(prompt, subset):
    texts = ["a", "bb", "ccc"]
    pairs = ((0, 1), (1, 2), (2, 0))
    return [PreferenceGroup(prompt, [texts[i], texts[j]], [Comparison(0, 1)], None, subset) for i, j in pairs]


DATA = dataset(*cycle("one", "s|1"), *cycle("two", "s2"))
WINS = np.array([[0, 2.0, -2], [-2, 0, 2], [2, -2, 0]])  # the scores of a model that knows the cycle
SETTINGS = Settings(bootstrap=100)


def line(text, start):
    return next(row for row in text.splitlines() if row.startswith(start))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(
        ["gpm"], [DATA], lambda *_: [WINS, WINS], tmp_path_factory.mktemp("run"), Settings(bootstrap=100, plots=False)
    )["gpm"]


def test_metrics_of_a_model_that_knows_the_cycle(result):
    assert (result["accuracy"], result["pairs"], result["prompts"]) == (1, 6, 2)
    assert result["nll"] == pytest.approx(math.log1p(math.exp(-2)))
    assert result["cyclic"]["ranking_bound"] == pytest.approx(2 / 3)
    assert result["cyclic"]["whole"] == 1
    assert set(result["cyclic"]["by_subset"]) == {"s|1", "s2"}
    assert result["groups"]["cyclic_share"]["mean"] == pytest.approx(1)
    assert result["groups"]["no_condorcet_winner"] == 1
    # ccc beats a by length only: one of three.
    assert result["baseline"]["longer_wins"]["accuracy"] == pytest.approx(1 / 3)
    assert "groups" not in result["baseline"]["longer_wins"]
    assert result["settings"]["bootstrap"] == 100


def test_the_report_shows_the_numbers_with_the_baseline_and_the_paper(result):
    baseline = evaluate([DATA], longer_wins([DATA]), SETTINGS)
    text = report.markdown({"gpm": result}, baseline, [], ["reliability.png"])
    assert line(text, "| accuracy %") == "| accuracy % | 100.0 | 33.3 |"
    assert line(text, "| NLL") == "| NLL, nats | 0.127 | – |"
    assert line(text, "| s\\|1") == "| s\\|1 | 3 | 1 | 100.0 | 33.3 |"  # one prompt: no interval
    assert line(text, "| all") == "| all | 2 | 66.7 | 100.0 / 100.0 | 33.3 / 0.0 |"
    assert line(text, "| no truthfulness") == "| no truthfulness | 50.0 | 100 |"
    assert line(text, "| groups with a 3-cycle") == "| groups with a 3-cycle, % | 100.0 |"
    assert "![reliability](reliability.png)" in text
    assert "count as wrong" not in text


def test_ten_prompts_are_enough_for_an_interval():
    rows = [PreferenceGroup(f"p{i}", ["a", "bb"], [Comparison(1, 0)]) for i in range(10)]
    found = evaluate([dataset(*rows)], [[np.array([[0, -1.0], [1, 0]])] * 10], SETTINGS) | {"data": []}
    row = line(report.markdown({"m": found}, found, []), "| accuracy %")
    assert re.fullmatch(r"\| accuracy % \| 100\.0 \[6\d\.\d, 100\.0\] \|.*", row)


def test_ties_and_missing_scores_are_spoken_of():
    nan = np.full((3, 3), np.nan)
    found = evaluate([DATA], [[np.zeros((3, 3)), nan]], SETTINGS) | {"data": [], "model": "m"}
    assert (found["ties"], found["nan"], found["accuracy"]) == (3, 3, 0)
    text = report.markdown({"m": found}, found, [])
    assert "**m**: 3 tied and 3 without a finite score, of 6 comparisons; they count as wrong." in text


def test_differences_between_models_are_paired():
    half = [[WINS, -WINS]]
    found = compare([DATA], {"a": [[WINS, WINS]], "b": half, "c": half}, SETTINGS)
    assert [(row["a"], row["b"], row["difference"]) for row in found] == [
        ("a", "b", 0.5),
        ("a", "c", 0.5),
        ("b", "c", 0.0),
    ]
    assert found[2]["ci95"] is None
    baseline = evaluate([DATA], half, SETTINGS)
    text = report.markdown({"a": baseline | {"data": []}, "b": baseline | {"data": []}}, baseline, found)
    assert line(text, "| b - c") == "| b - c | 0.0 | – |"


def test_sets_that_a_ranking_reproduces_are_not_called_cyclic():
    ranked = PreferenceGroup(
        "three", ["a", "b", "c"], [Comparison(0, 1), Comparison(1, 2), Comparison(0, 2)], "r", "r"
    )
    reward = np.array([2.0, 1.0, 0.0])[:, None] - np.array([2.0, 1.0, 0.0])

    def text(data, scores):
        found = evaluate([data], [scores], SETTINGS)
        return report.markdown({"m": found | {"data": []}}, found, [])

    assert "Cyclic sets" not in text(dataset(ranked), [reward])
    both = text(dataset(*cycle("two", "s2"), ranked), [WINS, reward])
    cyclic = both[both.index("## Cyclic sets") :]
    assert line(cyclic, "| s2") == "| s2 | 1 | 66.7 | 100.0 / 100.0 | 100.0 / 100.0 |"
    assert "| r |" not in cyclic


def test_a_model_without_a_finite_score_hides_no_other(tmp_path):
    nan = [np.full((3, 3), np.nan)] * 2

    def score(name, *_):
        return nan if name == "nan" else [WINS, WINS]

    for models in (["good", "nan"], ["nan", "good"]):
        run(models, [DATA], score, tmp_path / models[0], Settings(bootstrap=100, plots=False))
        text = (tmp_path / models[0] / "report.md").read_text()
        assert line(text, "| groups with a 3-cycle") == "| groups with a 3-cycle, % | 100.0 |"


def test_a_cycle_of_nine_responses_is_said_to_have_no_exact_bound():
    pairs = [Comparison(i, (i + 1) % 9) for i in range(9)]
    data = dataset(PreferenceGroup("p", [f"response {i}" for i in range(9)], pairs), *cycle("one", "s"))
    found = evaluate([data], longer_wins([data]), SETTINGS)
    text = report.markdown({"m": found | {"data": []}}, found, [])
    text = text[text.index("## Cyclic sets") :]
    said = "Groups without an exact bound, because cycles connect more than 8 of their responses: 1."
    assert said in line(text, "Accuracy % / groups reproduced")
    assert line(text, "| s ") == "| s | 1 | 66.7 | 33.3 / 0.0 | 33.3 / 0.0 |"


def test_many_subsets_do_not_flood_the_report():
    rows = [PreferenceGroup(f"p{i}", ["a", "b"], [Comparison(0, 1)], None, f"s{i:03}") for i in range(101)]
    found = evaluate([dataset(*rows)], [[np.array([[0, 1.0], [-1, 0]])] * 101], SETTINGS)
    assert len(found["by_subset"]) == 101
    text = report.markdown({"m": found | {"data": []}}, found, [])
    assert sum(row.startswith("| s0") for row in text.splitlines()) == report.MAX_ROWS
    assert f"The {report.MAX_ROWS} largest of 101; all are in metrics.json." in text


def test_rows_that_are_no_items_of_rewardbench_2_are_spoken_of():
    right = [Comparison(0, i) for i in (1, 2, 3)]
    item = PreferenceGroup("p", ["a", "b", "c", "d"], right, "1", "Math")
    pair = PreferenceGroup("q", ["a", "b"], [Comparison(0, 1)], "2", "Math")
    reward = np.arange(4.0)[::-1, None] - np.arange(4.0)[::-1]
    found = evaluate([dataset(item, pair)], [[reward, reward[:2, :2]]], SETTINGS)
    assert (found["rewardbench2"]["items"], found["rewardbench2"]["not_items"]) == ({"Math": 1}, 1)
    assert "1 rows of these subsets are left out" in report.markdown({"m": found | {"data": []}}, found, [])


def test_without_bootstrap_there_are_no_intervals():
    found = evaluate([DATA], [[WINS, WINS]], Settings(bootstrap=0))
    assert found["ci95"] == {}
    text = report.markdown({"m": found | {"data": []}}, found, compare([DATA], {"m": [[WINS, WINS]]}, SETTINGS))
    assert line(text, "| accuracy %") == "| accuracy % | 100.0 | 100.0 |"


def test_numbers_are_written_in_percent():
    assert report.percent(0.5) == "50.0"
    assert report.percent(0.5, [0.4512, 0.549]) == "50.0 [45.1, 54.9]"
    assert report.percent(None) == "–"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"bins": 0}, "--bins must be from 1 to 1000, got 0"),
        ({"bootstrap": -1}, "--bootstrap must be at least 100, .* got -1"),
        ({"seed": -1}, "--seed must be >= 0, got -1"),
        ({"group_score": "elo"}, "--group_score must be 'mean_score' or 'win_rate', got 'elo'"),
    ],
)
def test_wrong_settings_name_their_flag(bad, message):
    with pytest.raises(ValueError, match=message):
        Settings(**bad)


def test_plots_are_png_files_of_some_size(tmp_path, result):
    baseline = evaluate([DATA], longer_wins([DATA]), SETTINGS)
    names = plots.draw_all(tmp_path, {"gpm": result, "other": result}, baseline)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert sorted(names) == ["accuracy.png", "cyclic_share.png", "reliability.png"]
    for name in names:
        content = (tmp_path / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", content[16:24])) > 200


def test_plots_show_the_numbers_of_the_metrics(result):
    axis = plots.reliability({"gpm": result}).axes[0]
    curve = next(drawn for drawn in axis.lines if drawn.get_label().startswith("gpm"))
    assert curve.get_xdata() == [result["calibration"][0]["confidence"]]
    assert curve.get_ydata() == [1.0]
    baseline = evaluate([DATA], longer_wins([DATA]), SETTINGS)
    axis = plots.accuracy({"gpm": result}, baseline).axes[0]
    points = {drawn.get_label(): drawn.get_xdata()[0] for drawn in axis.lines if drawn.get_label()[0] != "_"}
    assert points == {"gpm": 1.0, "longer wins": pytest.approx(1 / 3)}
    assert [text.get_text() for text in axis.get_yticklabels()] == ["all", "s2", "s|1"]
