"""What GPO and SPPO share: targets over beta, the clip, the choice of responses and the squared error."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_gpm.core import Groups, mean_scores, win_rates
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.sppo import SPPO

SCORES = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]])
some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
both = pytest.mark.parametrize("objective", [GPO, SPPO])


def target(objective: GPO | SPPO, scores: Tensor) -> Tensor:
    """(..., K, K) -> (..., K)."""
    return objective.prepare(Groups(scores))["target"]


@st.composite
def skew_matrices(draw) -> Tensor:
    K = draw(st.integers(2, 7))
    m = torch.tensor(draw(st.lists(st.floats(-10, 10, width=32), min_size=K * K, max_size=K * K))).view(K, K)
    return m - m.T


@some
@given(skew_matrices())
def test_targets_are_the_group_statistics_over_beta(scores):
    torch.testing.assert_close(target(GPO(beta=0.1), scores), mean_scores(scores) / 0.1)
    torch.testing.assert_close(target(SPPO(beta=0.1), scores), (win_rates(scores) - 0.5) / 0.1)


@some
@given(skew_matrices())
def test_decision_11_targets_of_a_group_sum_to_zero_without_a_baseline(scores):
    assert target(GPO(), scores).mean().abs() < 1e-5
    assert target(SPPO(), scores).mean().abs() < 1e-6
    assert target(SPPO(hard=True), scores).mean().abs() < 1e-6


def test_decision_13_small_beta_gives_hundreds_of_nats_and_clip_limits_both_sides():
    torch.testing.assert_close(target(GPO(beta=0.001), SCORES), torch.tensor([1500.0, 0.0, -1500.0]))
    assert target(GPO(beta=0.001, target_clip=1000.0), SCORES).tolist() == [1000.0, 0.0, -1000.0]
    assert target(SPPO(beta=0.001, target_clip=100.0), 30 * SCORES).tolist() == [100.0, 0.0, -100.0]
    assert target(SPPO(beta=0.001), 30 * SCORES)[0] == pytest.approx(500.0)


def test_decision_16_a_group_does_not_see_its_neighbours():
    groups = torch.stack([SCORES, -3 * SCORES])
    for objective in (GPO(beta=0.5, baseline="log_z"), SPPO(beta=0.5, hard=True)):
        assert torch.equal(target(objective, groups)[0], target(objective, SCORES))
        assert torch.equal(target(objective, groups)[1], target(objective, -3 * SCORES))


@both
def test_all_responses_are_trained_or_the_best_and_the_worst(objective):
    groups = Groups(torch.stack([SCORES, -SCORES]))
    assert objective().select(groups).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert objective(responses="best_worst").select(groups).tolist() == [[0, 2], [2, 0]]
    assert (objective().trained(5), objective(responses="best_worst").trained(5)) == (5, 2)


@both
def test_regression_gradient_is_twice_the_error_and_reaches_only_the_policy(objective):
    moved = torch.tensor([0.5, -1.0], requires_grad=True)
    objective().loss(moved, {"target": torch.tensor([2.0, 0.0])}).sum().backward()
    assert moved.grad.tolist() == [-3.0, -2.0]


def test_targets_and_loss_are_fp32_for_lower_precision_inputs():
    half = SCORES.bfloat16()
    for objective in (GPO(), GPO(baseline="log_z"), SPPO(), SPPO(hard=True)):
        assert target(objective, half).dtype == torch.float32
        assert objective.loss(half[0], {"target": half[1]}).dtype == torch.float32


@both
def test_bad_settings_are_refused_with_their_flag(objective):
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"--gpo\.beta must be at least"):
            objective(beta=beta)
    for clip in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"--gpo\.target_clip must be > 0"):
            objective(target_clip=clip)


def test_regression_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"one target per response: got \(3, 1\) for \(3,\) log-ratios"):
        GPO().loss(torch.zeros(3), {"target": torch.zeros(3, 1)})
