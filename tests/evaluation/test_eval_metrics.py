"""Pair metrics: hand numbers, and slow references."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from openrlhf_gpm.evaluation.metrics import (
    Comparisons,
    accuracy_difference,
    calibration,
    pair_metrics,
    right,
)


def table(scores, labels=None, prompts=None, subsets=None):
    n = len(scores)
    return Comparisons(
        np.array(scores, float),
        np.ones(n) if labels is None else np.array(labels, float),
        np.arange(n) if prompts is None else np.array(prompts),
        [None] * n if subsets is None else subsets,
    )


LOG3 = math.log(3)  # probability 3/4


def test_metrics_by_hand():
    found = pair_metrics(table([LOG3, -LOG3, LOG3], labels=[1.0, 1.0, 0.75]), bins=10, draws=0)
    assert found["accuracy"] == pytest.approx(2 / 3)
    soft = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["nll"] == pytest.approx((-math.log(0.75) - math.log(0.25) + soft) / 3)
    assert found["brier"] == pytest.approx((1 / 16 + 9 / 16 + 0) / 3)
    # All confidences are 3/4, the favoured side's labels 1, 0, 3/4: mean 7/12.
    assert found["ece"] == pytest.approx(3 / 4 - 7 / 12)
    assert found["ci95"] == {}
    assert found["by_subset"] == {}


def test_ties_nan_and_infinity_are_wrong_and_counted():
    found = pair_metrics(table([1.0, 0.0, math.nan, math.inf, 2.0]), draws=0)
    assert found["accuracy"] == 2 / 5
    assert (found["ties"], found["nan"], found["pairs"]) == (1, 2, 5)
    assert found["nll"] == pytest.approx((np.logaddexp(0, -1) + math.log(2) + np.logaddexp(0, -2)) / 3)
    assert list(right(table([1.0, 0.0, math.nan, math.inf, 2.0]))) == [True, False, False, False, True]


def test_soft_labels_say_which_side_is_right_and_one_half_is_left_out():
    found = pair_metrics(table([2.0, -2.0, 2.0, 0.0], labels=[0.9, 0.1, 0.2, 0.5]), draws=0)
    assert found["accuracy"] == 2 / 3
    assert (found["undecided"], found["ties"]) == (1, 0)


def test_swapping_first_and_second_changes_nothing():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=50), rng.uniform(size=50)
    scores[3] = 0
    swap = rng.random(50) < 0.5
    prompts = rng.integers(0, 20, 50)
    a = pair_metrics(table(scores, labels, prompts))
    b = pair_metrics(table(np.where(swap, -scores, scores), np.where(swap, 1 - labels, labels), prompts))
    for name in ("accuracy", "nll", "brier", "ece"):
        assert a[name] == pytest.approx(b[name], abs=1e-12)
        assert a["ci95"][name] == pytest.approx(b["ci95"][name], abs=1e-12)


def test_calibration_is_that_of_both_sides_in_twice_as_many_bins():
    """The slow reference: every comparison twice, bins over [0, 1], the usual definition."""
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(scale=2, size=300), rng.uniform(size=300)
    p = np.concatenate([1 / (1 + np.exp(-scores)), 1 / (1 + np.exp(scores))])
    y = np.concatenate([labels, 1 - labels])
    expected = 0.0
    for i in range(14):
        inside = (p >= i / 14) & (p < (i + 1) / 14)
        if inside.any():
            expected += inside.sum() / len(p) * abs(p[inside].mean() - y[inside].mean())
    assert pair_metrics(table(scores, labels), bins=7, draws=0)["ece"] == pytest.approx(expected)


def test_a_calibrated_model_has_no_calibration_error():
    """Of four comparisons at 3/4, three are won; labels equal to the probabilities are perfect one by one."""
    assert pair_metrics(table([LOG3] * 4, labels=[1, 1, 1, 0]), draws=0)["ece"] == pytest.approx(0)
    scores = np.linspace(-4, 4, 41)
    assert pair_metrics(table(scores, 1 / (1 + np.exp(-scores))), draws=0)["ece"] == pytest.approx(0, abs=1e-12)


def test_the_reliability_table_by_hand():
    bins = calibration(table([LOG3, LOG3, -20.0, 0.0], labels=[1, 0, 0, 1]), bins=2)
    assert [b["count"] for b in bins] == [1, 3]
    assert (bins[0]["low"], bins[0]["high"], bins[1]["high"]) == (0.5, 0.75, 1.0)
    assert (bins[0]["confidence"], bins[0]["outcome"]) == (0.5, 0.5)  # a tie favours neither side
    assert bins[1]["confidence"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    assert bins[1]["outcome"] == pytest.approx(2 / 3)


def test_large_scores_stay_finite():
    found = pair_metrics(table([1e5, -1e5]), draws=0)
    assert found["nll"] == pytest.approx(5e4)
    assert found["brier"] == pytest.approx(0.5)


def test_nothing_to_measure_gives_none():
    found = pair_metrics(table([]))
    assert [found[name] for name in ("accuracy", "nll", "brier", "ece")] == [None] * 4
    assert (found["pairs"], found["prompts"], found["calibration"]) == (0, 0, [])
    assert pair_metrics(table([1.0], labels=[0.5]))["accuracy"] is None
    assert pair_metrics(table([math.nan]))["nll"] is None


def test_every_subset_is_measured_by_itself():
    found = pair_metrics(table([1, -1, 1, 1], subsets=["b", "b", "a", None], prompts=[0, 1, 1, 2]))
    assert list(found["by_subset"]) == ["a", "b"]
    b = found["by_subset"]["b"]
    alone = pair_metrics(table([1, -1]))
    assert {name: b[name] for name in b} == {name: alone[name] for name in b}
    assert found["accuracy"] == 3 / 4
    assert found["prompts"] == 3


def test_the_difference_of_two_models_is_paired():
    """b is a, but wrong on one prompt of 20: the difference is that prompt's, although accuracies vary far more."""
    a = np.array([1.0, -1.0] * 10)
    b = a.copy()
    b[0] = -1
    found = accuracy_difference(table(a), table(b))
    assert found["difference"] == pytest.approx(0.05)
    low, high = found["ci95"]
    alone = pair_metrics(table(a))["ci95"]["accuracy"]
    assert low < 0 < 0.05 < high
    assert high - low < 0.75 * (alone[1] - alone[0])
    assert found["separated"] is False
    certain = accuracy_difference(table(np.ones(12)), table(-np.ones(12)))
    assert (certain["difference"], certain["separated"]) == (1.0, True)
    assert 0.3 < certain["ci95"][0] < certain["ci95"][1] == 1.0
    assert accuracy_difference(table(a), table(b), draws=0)["ci95"] is None
    with pytest.raises(ValueError, match="same comparisons only"):
        accuracy_difference(table(a), table(b[:5]))


def test_the_calibration_error_is_scipy_s_binned_means():
    rng = np.random.default_rng(6)
    scores, labels = rng.normal(size=500) * 2, rng.random(500).round(1)
    p = 1 / (1 + np.exp(-scores))
    confidence, outcome = np.maximum(p, 1 - p), np.where(p > 0.5, labels, 1 - labels)
    edges = np.linspace(0.5, 1, 11)
    counts, means = (
        stats.binned_statistic(confidence, values, statistic, bins=edges).statistic
        for values, statistic in (([confidence], "count"), ([confidence, outcome], "mean"))
    )
    expected = np.nansum(counts * np.abs(means[0] - means[1])) / 500
    assert pair_metrics(table(scores, labels))["ece"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bins", [0, 1001, 100_000_000])
def test_a_number_of_bins_that_means_nothing_is_refused(bins):
    with pytest.raises(ValueError, match=f"--bins must be from 1 to 1000, got {bins}"):
        pair_metrics(table([1.0]), bins=bins)


def test_a_difference_over_few_prompts_has_no_interval():
    a, b = table([1.0, 1, -1], [1.0, 1, 1], [0, 1, 2]), table([1.0, -1, -1], [1.0, 1, 1], [0, 1, 2])
    found = accuracy_difference(a, b)
    assert (found["difference"], found["ci95"], found["separated"]) == (pytest.approx(1 / 3), None, None)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(-50, 50), st.just(math.nan), st.just(0.0)),
            st.floats(0, 1),
            st.integers(0, 15),
        ),
        max_size=40,
    ),
    st.integers(1, 15),
)
def test_every_metric_is_in_its_range(rows, bins):
    found = pair_metrics(table(*[[row[i] for row in rows] for i in range(3)]), bins, draws=20)
    for name, top in (("accuracy", 1), ("brier", 1), ("ece", 1), ("nll", math.inf)):
        if found[name] is not None:
            assert 0 <= found[name] <= top + 1e-9
            assert (name in found["ci95"]) == (found["prompts"] >= 10)
            low, high = found["ci95"].get(name) or (0, top)
            assert -1e-9 <= low <= found[name] + 1e-9
            assert found[name] - 1e-9 <= high <= top + 1e-9
    assert sum(b["count"] for b in found["calibration"]) == found["pairs"] - found["nan"]
