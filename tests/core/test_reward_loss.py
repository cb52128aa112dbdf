"""Training losses of the preference model (A.3, decision 9)."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf_gpm.core import embed_rewards, preference_loss, preference_score, score_regression_loss

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
finite = st.floats(-50, 50, width=32)
unit = st.floats(0, 1, width=32)


def test_hard_label_cross_entropy_by_hand():
    assert preference_loss(torch.tensor([LOG3])).item() == pytest.approx(-math.log(0.75))
    assert preference_loss(torch.tensor([LOG3, -LOG3])).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_soft_label_cross_entropy_by_hand():
    loss = preference_loss(torch.tensor([LOG3]), torch.tensor([0.25]))
    assert loss.item() == pytest.approx(-(0.25 * math.log(0.75) + 0.75 * math.log(0.25)))


def test_label_smoothing_by_hand():
    expected = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25))
    assert preference_loss(torch.tensor([LOG3]), smoothing=0.1).item() == pytest.approx(expected)
    # a label of 0.8 smoothed by 0.1 is 0.9 * 0.8 + 0.1 * 0.2 = 0.74
    expected = -(0.74 * math.log(0.75) + 0.26 * math.log(0.25))
    loss = preference_loss(torch.tensor([LOG3]), torch.tensor([0.8]), smoothing=0.1)
    assert loss.item() == pytest.approx(expected)


def test_decision_9_margin_is_subtracted_in_raw_units_before_the_division_by_tau():
    tau, raw, margin = 0.1, torch.tensor([0.5]), torch.tensor([0.3])
    expected = -F.logsigmoid((raw - margin) / tau)
    torch.testing.assert_close(preference_loss(raw / tau, margin=margin, tau=tau), expected.squeeze())
    torch.testing.assert_close(preference_loss(raw / tau, margin=0.3, tau=tau), expected.squeeze())


def test_decision_9_regression_to_log_odds_by_hand():
    assert score_regression_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5])).item() == pytest.approx(2.125)


def test_decision_9_bradley_terry_is_the_same_loss_on_a_reward_difference():
    chosen, rejected = torch.tensor([1.0, -0.5, 3.0]), torch.tensor([0.2, 0.4, 3.0])
    score = preference_score(embed_rewards(chosen), embed_rewards(rejected))
    torch.testing.assert_close(preference_loss(score), -F.logsigmoid(chosen - rejected).mean())


@some
@given(finite, unit, st.floats(0, 0.49))
def test_swapping_a_pair_and_its_label_changes_nothing(score, label, smoothing):
    score, label = torch.tensor([score]), torch.tensor([label])
    swapped = preference_loss(-score, 1 - label, smoothing=smoothing)
    torch.testing.assert_close(preference_loss(score, label, smoothing=smoothing), swapped)


@some
@given(finite, unit)
def test_soft_labels_agree_with_torch_binary_cross_entropy(score, label):
    score, label = torch.tensor([score]), torch.tensor([label])
    torch.testing.assert_close(preference_loss(score, label), F.binary_cross_entropy_with_logits(score, label))


@some
@given(st.floats(0.05, 0.95))
def test_cross_entropy_is_least_where_the_score_is_the_log_odds_of_the_label(label):
    score = torch.tensor([label]).logit().requires_grad_()
    preference_loss(score, torch.tensor([label])).backward()
    assert score.grad.abs() < 1e-6


def test_loss_stays_finite_with_a_gradient_for_very_wrong_scores():
    score = torch.tensor([-1e4], requires_grad=True)
    loss = preference_loss(score)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert score.grad.item() == -1.0


def test_losses_are_fp32_for_lower_precision_scores():
    score = torch.tensor([1.0, 2.0]).bfloat16()
    assert preference_loss(score, label=torch.ones(2).bfloat16()).dtype == torch.float32
    assert score_regression_loss(score, score).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_smoothing_that_erases_or_flips_the_label_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"--gpm\.label_smoothing must be at least 0 and below 0\.5"):
        preference_loss(torch.zeros(2), smoothing=smoothing)


def test_shapes_that_would_broadcast_are_refused():
    column = torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"label must have one value a pair, shape \(3,\), got \(3, 1\)"):
        preference_loss(torch.zeros(3), column)
    with pytest.raises(ValueError, match="margin must have one value a pair"):
        preference_loss(torch.zeros(3), margin=column)
    with pytest.raises(ValueError, match="target must have one value a pair"):
        score_regression_loss(torch.zeros(3), column)
