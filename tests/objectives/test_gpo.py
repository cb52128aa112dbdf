"""GPO's targets (section 5.2, decisions 10 and 11) and what minimising its loss leads to."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_gpm.core import Groups, bt_scores
from openrlhf_gpm.objectives.gpo import GPO

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
SCORES = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]])
some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine


def target(scores: Tensor, **flags) -> Tensor:
    """(K, K) -> (K,)."""
    return GPO(**flags).prepare(Groups(scores[None]))["target"][0]


@st.composite
def skew_matrices(draw) -> Tensor:
    K = draw(st.integers(2, 7))
    m = torch.tensor(draw(st.lists(st.floats(-10, 10, width=32), min_size=K * K, max_size=K * K))).view(K, K)
    return m - m.T


def test_eq_5_6_and_5_7_by_hand():
    # s_hat = 3/2, 0, -3/2 over the two others; 1, 0, -1 with the paper's 1/3
    assert target(SCORES, beta=0.5).tolist() == [3.0, 0.0, -3.0]
    assert target(SCORES, beta=0.5, include_self=True).tolist() == [2.0, 0.0, -2.0]
    loss = GPO().loss(torch.tensor([1.0, 0.5, -2.0]), {"target": target(SCORES, beta=0.5)})
    assert loss.tolist() == [4.0, 0.25, 1.0]


def test_decision_10_doubling_the_table_over_k_as_the_authors_script_does_is_1_6_times_ours_at_5_responses():
    m = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    table = m - m.T
    doubled = torch.stack([sum(table[i, j] - table[j, i] for j in range(5)) / 5 for i in range(5)])
    torch.testing.assert_close(doubled, 1.6 * target(table, beta=1.0))


def test_decision_11_log_z_baseline_by_hand():
    scores = torch.tensor([[0.0, LOG3], [-LOG3, 0.0]])
    # s_hat = +-log 3; mean of exp is (3 + 1/3) / 2 = 5/3
    expected = torch.tensor([LOG3 - math.log(5 / 3), -LOG3 - math.log(5 / 3)]) / 2
    torch.testing.assert_close(target(scores, beta=2.0, baseline="log_z"), expected)


@some
@given(skew_matrices(), st.sampled_from([0.01, 1.0, 20.0]), st.booleans())
def test_decision_11_log_z_normalises_the_exponential_weights(scores, beta, include_self):
    """With Z = E exp(s_hat) as in eq. 5.7, exp(s_hat - log Z) averages to one over the group."""
    with_log_z = target(scores, beta=beta, baseline="log_z", include_self=include_self)
    torch.testing.assert_close((beta * with_log_z).exp().mean(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
    shift = target(scores, beta=beta, include_self=include_self) - with_log_z
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=1e-4, atol=1e-4 / beta)  # one b per group


def test_decision_11_minimising_the_regression_with_log_z_gives_the_multiplicative_step_exactly():
    """eq. 5.7 by gradient descent on a table of logits, beta = 1: the minimum is 0, at pi_t exp(s_hat) / Z."""
    cycle = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
    start = torch.tensor([0.6, 0.3, 0.1])
    group = torch.arange(3).repeat_interleave(torch.tensor([6, 3, 1]))  # pi_t itself
    objective = GPO(beta=1.0, include_self=True, baseline="log_z")
    prepared = {name: values[0] for name, values in objective.prepare(Groups(cycle[group][None, :, group])).items()}
    logits = start.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = objective.loss((logits.log_softmax(-1) - start.log())[group], prepared).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert loss().item() < 1e-6
    s_hat = cycle @ start  # the exact mean score against pi_t
    torch.testing.assert_close(
        logits.softmax(-1), start * s_hat.exp() / (start * s_hat.exp()).sum(), atol=1e-4, rtol=0
    )


def test_bradley_terry_rewards_centre_on_the_group_mean():
    """The special case: with BT scores s_hat is the reward minus the mean of the others, RLOO's advantage."""
    rewards = torch.tensor([3.0, 1.0, -1.0, 2.0])
    expected = torch.stack([rewards[i] - rewards[torch.arange(4) != i].mean() for i in range(4)])
    torch.testing.assert_close(target(bt_scores(rewards), beta=1.0), expected)


def test_unknown_baseline_is_refused_with_its_flag():
    with pytest.raises(ValueError, match=r"--gpo\.baseline must be zero or log_z, got 'mean'"):
        GPO(baseline="mean")
