"""GPO and SPPO targets and the regression on them (section 5.2, decisions 10-13)."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_gpm.core import (
    best_worst_mask,
    bt_scores,
    gpo_target,
    mean_scores,
    policy_regression_loss,
    sppo_target,
    win_rates,
)

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
SCORES = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]])
some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine


@st.composite
def skew_matrices(draw) -> Tensor:
    K = draw(st.integers(2, 7))
    m = torch.tensor(draw(st.lists(st.floats(-10, 10, width=32), min_size=K * K, max_size=K * K))).view(K, K)
    return m - m.T


def test_eq_5_6_and_5_7_by_hand():
    # s_hat = 3/2, 0, -3/2 over the two others; 1, 0, -1 with the paper's 1/3
    assert gpo_target(SCORES, beta=0.5).tolist() == [3.0, 0.0, -3.0]
    assert gpo_target(SCORES, beta=0.5, include_self=True).tolist() == [2.0, 0.0, -2.0]
    loss = policy_regression_loss(torch.tensor([1.0, 0.5, -2.0]), gpo_target(SCORES, beta=0.5))
    assert loss.tolist() == [4.0, 0.25, 1.0]


def test_decision_10_doubling_the_table_over_k_as_the_authors_script_does_is_1_6_times_ours_at_5_responses():
    m = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    table = m - m.T
    doubled = torch.stack([sum(table[i, j] - table[j, i] for j in range(5)) / 5 for i in range(5)])
    torch.testing.assert_close(doubled, 1.6 * gpo_target(table, beta=1.0))


def test_decision_11_log_z_baseline_by_hand():
    scores = torch.tensor([[0.0, LOG3], [-LOG3, 0.0]])
    # s_hat = +-log 3; mean of exp is (3 + 1/3) / 2 = 5/3
    expected = torch.tensor([LOG3 - math.log(5 / 3), -LOG3 - math.log(5 / 3)]) / 2
    torch.testing.assert_close(gpo_target(scores, beta=2.0, baseline="log_z"), expected)


@some
@given(skew_matrices(), st.sampled_from([0.01, 1.0, 20.0]), st.booleans())
def test_decision_11_log_z_normalises_the_exponential_weights(scores, beta, include_self):
    """With Z = E exp(s_hat) as in eq. 5.7, exp(s_hat - log Z) averages to one over the group."""
    target = gpo_target(scores, beta, baseline="log_z", include_self=include_self)
    torch.testing.assert_close((beta * target).exp().mean(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
    shift = gpo_target(scores, beta, include_self=include_self) - target
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=1e-4, atol=1e-4 / beta)  # one b a group


@some
@given(skew_matrices())
def test_decision_11_targets_of_a_group_sum_to_zero_without_a_baseline(scores):
    assert gpo_target(scores, 1.0).mean().abs() < 1e-5
    assert sppo_target(scores, 1.0).mean().abs() < 1e-6
    assert sppo_target(scores, 1.0, hard=True).mean().abs() < 1e-6


def test_decision_12_sppo_target_by_hand():
    scores = torch.tensor([[0.0, LOG3, LOG3], [-LOG3, 0.0, 0.0], [-LOG3, 0.0, 0.0]])
    # win rates 3/4, 3/8, 3/8 over the two others; 2/3, 5/12, 5/12 over all three
    torch.testing.assert_close(sppo_target(scores, beta=0.25), torch.tensor([1.0, -0.5, -0.5]))
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3])
    torch.testing.assert_close(sppo_target(scores, beta=0.25, include_self=True), expected)


def test_decision_12_hard_sppo_counts_wins_and_halves_ties():
    scores = torch.tensor([[0.0, 0.1, 5.0], [-0.1, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    assert sppo_target(scores, beta=1.0, hard=True).tolist() == [0.5, -0.25, -0.25]
    expected = torch.tensor([(0.5 + 1 + 1) / 3 - 0.5, (0 + 0.5 + 0.5) / 3 - 0.5, (0 + 0.5 + 0.5) / 3 - 0.5])
    torch.testing.assert_close(sppo_target(scores, beta=1.0, hard=True, include_self=True), expected)


def test_a_nan_score_is_not_counted_as_a_loss():
    scores = torch.tensor([[0.0, math.nan], [math.nan, 0.0]])
    assert sppo_target(scores, beta=1.0, hard=True).isnan().all()


@some
@given(skew_matrices())
def test_targets_are_the_group_statistics_over_beta(scores):
    torch.testing.assert_close(gpo_target(scores, 0.1), mean_scores(scores) / 0.1)
    torch.testing.assert_close(sppo_target(scores, 0.1), (win_rates(scores) - 0.5) / 0.1)


def test_decision_13_small_beta_gives_hundreds_of_nats_and_clip_limits_both_sides():
    target = gpo_target(SCORES, beta=0.001)
    torch.testing.assert_close(target, torch.tensor([1500.0, 0.0, -1500.0]))
    assert gpo_target(SCORES, beta=0.001, clip=1000.0).tolist() == [1000.0, 0.0, -1000.0]
    assert sppo_target(30 * SCORES, beta=0.001, clip=100.0).tolist() == [100.0, 0.0, -100.0]
    assert sppo_target(30 * SCORES, beta=0.001)[0] == pytest.approx(500.0)


def test_decision_16_a_group_does_not_see_its_neighbours():
    groups = torch.stack([SCORES, -3 * SCORES])
    for target in (lambda s: gpo_target(s, 0.5, baseline="log_z"), lambda s: sppo_target(s, 0.5, hard=True)):
        assert torch.equal(target(groups)[0], target(SCORES))
        assert torch.equal(target(groups)[1], target(-3 * SCORES))


def test_bradley_terry_rewards_centre_on_the_group_mean():
    """The special case: with BT scores s_hat is the reward minus the mean of the others, RLOO's advantage."""
    rewards = torch.tensor([3.0, 1.0, -1.0, 2.0])
    expected = torch.stack([rewards[i] - rewards[torch.arange(4) != i].mean() for i in range(4)])
    torch.testing.assert_close(gpo_target(bt_scores(rewards), beta=1.0), expected)


def test_best_and_worst_of_each_group_are_marked():
    values = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert best_worst_mask(values).tolist() == [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


@some
@given(st.lists(st.integers(-2, 2), min_size=2, max_size=6))
def test_two_different_responses_are_marked_however_many_are_equal(values):
    values = torch.tensor(values).float()
    mask = best_worst_mask(values)
    assert mask.sum() == 2
    assert sorted(values[mask.bool()].tolist()) == [values.min(), values.max()]


def test_regression_gradient_is_twice_the_error_and_reaches_only_the_policy():
    log_ratio = torch.tensor([0.5, -1.0], requires_grad=True)
    policy_regression_loss(log_ratio, torch.tensor([2.0, 0.0])).sum().backward()
    assert log_ratio.grad.tolist() == [-3.0, -2.0]


def test_targets_and_loss_are_fp32_for_lower_precision_inputs():
    half = SCORES.bfloat16()
    assert gpo_target(half, 1.0).dtype == sppo_target(half, 1.0).dtype == torch.float32
    assert sppo_target(half, 1.0, hard=True).dtype == best_worst_mask(half).dtype == torch.float32
    assert policy_regression_loss(half[0], half[1]).dtype == torch.float32


@pytest.mark.parametrize("target", [gpo_target, sppo_target])
def test_bad_settings_are_refused_with_their_flag(target):
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"--gpo\.beta must be > 0"):
            target(SCORES, beta=beta)
    with pytest.raises(ValueError, match=r"--gpo\.target_clip must be > 0"):
        target(SCORES, beta=1.0, clip=0.0)
    with pytest.raises(ValueError, match=r"raise --rollout\.n_samples_per_prompt"):
        target(torch.zeros(4, 1, 1), beta=1.0)
    with pytest.raises(ValueError, match=r"must be \(\.\.\., K, K\)"):
        target(torch.zeros(4, 3), beta=1.0)


def test_unknown_baseline_is_refused_with_its_flag():
    with pytest.raises(ValueError, match=r"--gpo\.baseline must be 'zero' or 'log_z', got 'mean'"):
        gpo_target(SCORES, beta=1.0, baseline="mean")


def test_regression_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"one target a response: log_ratio has shape \(3,\), target \(3, 1\)"):
        policy_regression_loss(torch.zeros(3), torch.zeros(3, 1))
