"""Intervals over prompts: they hold the truth as often as they say, also for few prompts and at the ends."""

import numpy as np
import pytest
from scipy import stats

from openrlhf_gpm.evaluation.intervals import (
    MIN_PROMPTS,
    bootstrap,
    difference_interval,
    gap_interval,
    mean_interval,
    share_interval,
    t_quantile,
)


@pytest.mark.parametrize("df", [5, 9, 12.5, 29, 199, 1e6])
def test_the_quantile_of_t_is_scipy_s(df):
    assert t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), abs=0.003)


def test_one_comparison_per_prompt_gives_wilson_s_interval():
    """With many prompts t is a normal quantile, and the prompts are the comparisons."""
    right = np.array([1.0] * 1400 + [0.0] * 600)
    low, high = share_interval(right, np.ones(2000))
    wilson = stats.binomtest(1400, 2000).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=2e-4)


def test_all_right_is_not_certainty():
    for prompts in (10, 30):
        low, high = share_interval(np.full(prompts, 3.0), np.full(prompts, 3.0))
        assert high == 1.0
        assert 0.6 < low < 1 - 1 / prompts
    low, high = difference_interval(np.full(10, 3.0), np.full(10, 3.0))
    assert (low < 0.8, high) == (True, 1.0)
    low, high = difference_interval(np.zeros(10), np.full(10, 3.0))
    assert low == -high
    assert 0.05 < high < 0.5


def test_copies_of_a_comparison_add_nothing():
    """Ten equal comparisons of a prompt are one: the interval is that of one comparison per prompt."""
    right = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    assert share_interval(10 * right, np.full(50, 10.0)) == pytest.approx(share_interval(right, np.ones(50)))


def test_there_is_no_interval_below_ten_prompts():
    few, more = np.ones(MIN_PROMPTS - 1), np.ones(MIN_PROMPTS)
    assert [share_interval(few, few), difference_interval(few, few), mean_interval(few, few, 100, 0)] == [None] * 3
    assert gap_interval(few[:, None], few, 100, 0) is None
    assert share_interval(np.append(few, 0), np.append(few, 0)) is None  # a prompt without comparisons is none
    assert share_interval(more, more) is not None


def test_the_bootstrap_takes_whole_prompts():
    """Two prompts, one always right and one always wrong: a draw is 0, 1/2 or 1, whatever the number of rows."""
    drawn = bootstrap(np.array([[50.0, 50.0], [0.0, 50.0]]), 2000, seed=0)
    share = drawn[:, 0] / drawn[:, 1]
    assert set(share) == {0.0, 0.5, 1.0}
    assert np.mean(share == 0.5) == pytest.approx(0.5, abs=0.05)


def test_the_bootstrap_is_seeded_and_its_blocks_change_nothing(monkeypatch):
    sums = np.random.default_rng(0).normal(size=(30, 4))
    whole = bootstrap(sums, 100, seed=3)
    np.testing.assert_array_equal(whole, bootstrap(sums, 100, seed=3))
    assert not np.array_equal(whole, bootstrap(sums, 100, seed=4))
    monkeypatch.setattr("openrlhf_gpm.evaluation.intervals.BLOCK", 7 * 30)
    np.testing.assert_array_equal(whole, bootstrap(sums, 100, seed=3))


def clusters(rng, prompts, share):
    """Sizes and counts of right comparisons; those of a prompt depend on each other."""
    d = rng.integers(1, 6, prompts).astype(float)
    return rng.binomial(d.astype(int), rng.beta(4 * share, 4 * (1 - share), prompts)).astype(float), d


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("prompts", [20, 50])
def test_the_interval_of_a_share_covers(share, prompts):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        x, d = clusters(rng, prompts, share)
        low, high = share_interval(x, d)
        assert low <= x.sum() / d.sum() <= high
        hits += low <= share <= high
    assert hits / 400 >= 0.93


def test_the_interval_of_a_skewed_mean_covers():
    """Losses like NLL: most are small, some large."""
    rng, hits = np.random.default_rng(2), 0
    for run in range(400):
        d = rng.integers(1, 4, 30).astype(float)
        x = d * rng.lognormal(-0.5, 0.8, 30)
        low, high = mean_interval(x, d, 300, run)
        assert 0 <= low <= x.sum() / d.sum() <= high
        hits += low <= np.exp(-0.5 + 0.8**2 / 2) <= high
    assert hits / 400 >= 0.92


@pytest.mark.parametrize("gap", [0.0, 0.15])
def test_the_interval_of_the_calibration_error_covers(gap):
    """Bins of confidence 0.55 to 0.95; a calibrated model's error is 0, which its estimate never is."""
    rng, hits = np.random.default_rng(3), 0
    for run in range(300):
        d = rng.integers(1, 6, 40).astype(float)
        gaps = np.zeros((40, 5))
        for prompt, size in enumerate(d.astype(int)):
            bins = rng.integers(0, 5, size)
            confidence = 0.55 + 0.1 * bins
            np.add.at(gaps[prompt], bins, confidence - (rng.random(size) < confidence - gap))
        low, high = gap_interval(gaps, d, 300, run)
        assert low <= np.abs(gaps.sum(0)).sum() / d.sum() <= high
        hits += low <= gap <= high
    assert hits / 300 >= 0.93


def test_the_interval_of_a_difference_covers():
    rng, hits, truth = np.random.default_rng(4), 0, 0.7 - 0.55
    for _ in range(400):
        d = rng.integers(1, 6, 30)
        easy = rng.normal(size=30)
        a, b = (rng.binomial(d, stats.norm.cdf(easy * 0.7 + stats.norm.ppf(p) * np.sqrt(1.49))) for p in (0.7, 0.55))
        low, high = difference_interval((a - b).astype(float), d.astype(float))
        hits += low <= truth <= high
    assert hits / 400 >= 0.93
