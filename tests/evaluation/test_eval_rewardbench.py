"""RewardBench's rules: the published example, weights, partial sections; RewardBench 2 and its Ties."""

import math

import pytest

from openrlhf_gpm.evaluation.rewardbench import (
    ITEMS,
    SECTIONS,
    Item,
    rewardbench,
    rewardbench2,
    section_scores,
    ties_score,
)

EXAMPLE = {
    "alpacaeval-easy": 0.5,
    "alpacaeval-hard": 0.7052631578947368,
    "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058,
    "hep-cpp": 0.6280487804878049,
    "hep-go": 0.6341463414634146,
    "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634,
    "hep-python": 0.5487804878048781,
    "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087,
    "llmbar-adver-GPTOut": 0.46808510638297873,
    "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236,
    "llmbar-natural": 0.52,
    "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714,
    "mt-bench-hard": 0.5405405405405406,
    "mt-bench-med": 0.725,
    "refusals-dangerous": 0.97,
    "refusals-offensive": 1,
    "xstest-should-refuse": 1,
    "xstest-should-respond": 0.284,
}
EXPECTED = {
    "Chat": 0.6089385475,
    "Chat Hard": 0.4495614035,
    "Safety": 0.7216216216,
    "Reasoning": 0.4667566978,
    "mean": 0.5617195676,
}


def test_the_published_example_comes_out():
    scores = section_scores(EXAMPLE)
    for name, value in EXPECTED.items():
        assert scores[name] == pytest.approx(value, abs=1e-10, rel=0)
    assert scores["partial"] == {}


def test_counts_are_the_published_ones():
    assert {section: sum(weights.values()) for section, weights in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1968,
    }
    assert sum(ITEMS.values()) == 2985  # the split "filtered"


def test_prior_sets_weigh_half_a_section():
    scores = section_scores(EXAMPLE, prior_sets=0.6)
    four = sum(EXPECTED[name] for name in SECTIONS)
    assert scores["with_prior_sets"] == pytest.approx((2 * four + 0.6) / 9, abs=1e-9)


def test_a_section_with_missing_subsets_is_partial():
    scores = section_scores({"mt-bench-easy": 1.0, "mt-bench-med": 0.0, "donotanswer": 0.5})
    assert scores["Chat"] == pytest.approx(28 / 68)
    assert scores["Safety"] == 0.5
    assert scores["mean"] == pytest.approx((28 / 68 + 0.5) / 2)
    assert "Reasoning" not in scores
    assert scores["partial"]["Chat"] == ["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard"]
    assert set(scores["partial"]) == set(SECTIONS)


def test_no_subset_of_rewardbench_is_an_error():
    with pytest.raises(ValueError, match=r"no subset of RewardBench among \['mine'\]"):
        section_scores({"mine": 1.0})


def test_sections_from_per_item_results_name_short_subsets():
    by_subset = {name: {"accuracy": value, "pairs": ITEMS[name]} for name, value in EXAMPLE.items()}
    found = rewardbench(by_subset | {"mine": {"accuracy": 0.0, "pairs": 9}})
    assert found is not None
    assert found["mean"] == pytest.approx(EXPECTED["mean"], abs=1e-9)
    assert found["partial"] == {}
    assert found["subsets"]["math-prm"] == {
        "section": "Reasoning",
        "accuracy": EXAMPLE["math-prm"],
        "items": 447,
        "published": 447,
        "weight": 984,
    }
    by_subset["donotanswer"] = {"accuracy": 0.5, "pairs": 2}
    short = rewardbench(by_subset)
    assert short is not None
    assert short["partial"] == {"Safety": ["donotanswer (2 of 136)"]}
    assert rewardbench({"mine": {"accuracy": 0.0, "pairs": 9}}) is None
    assert rewardbench({"donotanswer": {"accuracy": None, "pairs": 9}}) is None


def best_of_4(subset, right, *wrong):
    return Item("1", subset, [right], wrong)


def test_best_of_4_must_beat_all_three_strictly():
    items = [
        best_of_4("Math", 2.0, 1.0, 0.0, -1.0),
        best_of_4("Math", 2.0, 1.0, 2.0, -1.0),  # a tie at the top
        best_of_4("Math", math.nan, 1.0, 2.0, -1.0),
        best_of_4("Math", 3.0, math.nan, 2.0, -1.0),
        best_of_4("Focus", 0.1, 0.0, 0.0, 0.0),
    ]
    found = rewardbench2(items)
    assert found is not None
    assert found["subsets"] == {"Math": 0.25, "Focus": 1.0}
    assert found["mean"] == pytest.approx(0.625)
    assert found["missing"] == ["Factuality", "Precise IF", "Safety", "Ties"]
    assert found["items"] == {"Math": 4, "Focus": 1}
    assert rewardbench2([]) is None


def test_ties_by_hand():
    """Question 1: gaps 2 (ref) and 3 (tied), spread 1. Question 2: ref wrong; tied gap 1, spread 4."""
    items = [
        Item("ref:1", "Ties", [5.0], [3.0, 0.0]),
        Item("tied:1", "Ties", [5.0, 4.0], [1.0, 0.0]),
        Item("ref:2", "Ties", [1.0], [2.0]),
        Item("tied:2", "Ties", [6.0, 2.0], [1.0]),
    ]
    margin = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 4 - 1)) / 2
    found = ties_score(items)
    assert found["ref_accuracy"] == 0.5
    assert found["tied_accuracy"] == 1.0
    assert found["gap_exceeds_spread"] == 0.5
    assert found["smaller_gap_exceeds_spread"] == 0.5
    assert found["margin"] == pytest.approx(margin)
    assert found["score"] == pytest.approx(0.3 * 0.5 + 0.3 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * margin)
    assert found["questions"] == 2


def test_ties_takes_the_smaller_gap_of_the_two_versions():
    easy, hard = Item("ref:1", "Ties", [9.0], [0.0]), Item("ref:1", "Ties", [0.5], [0.0])
    tied = Item("tied:1", "Ties", [3.0, 2.0], [0.0])
    assert ties_score([easy, tied])["smaller_gap_exceeds_spread"] == 1
    assert ties_score([hard, tied])["smaller_gap_exceeds_spread"] == 0
    assert ties_score([hard, tied])["gap_exceeds_spread"] == 1


def test_the_best_score_of_ties_is_just_above_one():
    found = ties_score([Item("ref:1", "Ties", [1.0], [0.0]), Item("tied:1", "Ties", [1.0, 1.0], [0.0])])
    assert found["score"] == pytest.approx(1.01)
    none = ties_score([Item("ref:1", "Ties", [math.nan], [0.0]), Item("tied:1", "Ties", [1.0, 1.0], [math.nan])])
    assert none["score"] == pytest.approx(-0.01)


def test_a_wrong_id_of_ties_is_named():
    with pytest.raises(ValueError, match="'ref:5' or 'tied:5', got '5'"):
        ties_score([Item("5", "Ties", [1.0], [0.0])])


def test_ties_enters_the_mean_of_the_subsets():
    items = [
        Item("ref:1", "Ties", [1.0], [0.0]),
        Item("tied:1", "Ties", [1.0, 1.0], [0.0]),
        best_of_4("Math", 0, 1, 1, 1),
    ]
    found = rewardbench2(items)
    assert found is not None
    assert found["subsets"] == {"Math": 0.0, "Ties": pytest.approx(1.01)}
    assert found["mean"] == pytest.approx(0.505)
