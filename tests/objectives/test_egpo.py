"""EGPO: its two kinds of steps by hand, against autograd, and on rock-paper-scissors."""

import math

import pytest
import torch

from openrlhf_gpm.core import Groups, group_probs
from openrlhf_gpm.core.tabular import play
from openrlhf_gpm.objectives.egpo import EGPO
from openrlhf_gpm.objectives.frozen import FrozenRules

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
SCORES = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
START = torch.tensor([0.6, 0.3, 0.1])


def test_the_target_by_hand():
    scores = torch.tensor([[[0.0, LOG3], [-LOG3, 0.0]]])
    drift = {"iteration": torch.tensor([[0.5, -0.5]]), "ref": torch.tensor([[2.0, 0.0]])}
    groups = Groups(scores, drift=drift)
    assert EGPO(beta=0.25).prepare(groups)["target"].tolist() == [[1.0 - 0.5, -1.0 + 0.5]]
    # a quarter of the way to the start of the run, three quarters from where the look ahead began
    target = EGPO(beta=0.25, pull=0.25, magnet="ref").prepare(groups)["target"]
    assert target.tolist() == [[1.0 - 0.5 - 0.375, -1.0 + 0.375]]


def test_it_needs_where_the_look_ahead_began_and_its_magnet():
    assert EGPO().needs == ("iteration",)
    assert EGPO(pull=0.1).needs == ("ema", "iteration")
    assert EGPO(pull=0.1, magnet="iteration").needs == ("iteration",)
    assert EGPO(pull=0.1, magnet="iteration").pulls == {"iteration": 1.0}
    assert EGPO(pull=1.0, magnet="ref").needs == ("ref",)
    assert EGPO.iteration_every == 2


def test_the_gradient_is_that_of_a_regression_on_three_policies(table):
    """The slow reference: log pi -> (1 - eta tau) log pi_iteration + eta tau log pi_ref + eta (P_hat - 1/2)."""
    eta, eta_tau = 1 / 0.7, 0.3
    rate = torch.stack([sum(table.scores[i, j].sigmoid() for j in range(4) if j != i) / 3 for i in range(4)])
    aim = (1 - eta_tau) * table.frozen["iteration"] + eta_tau * table.frozen["ref"] + eta * (rate - 0.5)
    expected = (table.log_probs - aim).square().mean()
    loss = table.loss(EGPO(beta=0.7, pull=eta_tau, magnet="ref"))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(table.gradient(loss), table.gradient(expected))


@pytest.mark.parametrize("pull", [0.0, 0.2])
def test_two_steps_are_the_papers_two_lines(pull):
    """The look ahead from pi, then the whole step from pi again with the look's win rates; `ref` pulls in both."""
    objective = EGPO(beta=2.0, pull=pull, magnet="ref")
    policies = play(objective, SCORES, START, 4, share=FrozenRules().share)
    probs, start = group_probs(SCORES).double(), START.double().log().log_softmax(-1)
    pi = start
    for half, whole in ((1, 2), (3, 4)):
        kept = (1 - pull) * pi + pull * start
        ahead = (kept + probs @ pi.exp() / 2).log_softmax(-1)
        torch.testing.assert_close(policies[half], ahead.exp())
        pi = (kept + probs @ ahead.exp() / 2).log_softmax(-1)
        torch.testing.assert_close(policies[whole], pi.exp())


def test_the_last_policy_converges_without_a_magnet(worst_case):
    assert worst_case(EGPO(), 20, 80, 320, 1280) == pytest.approx(
        {20: 0.348, 80: 0.435, 320: 0.498, 1280: 0.500}, abs=5e-4
    )


def test_with_the_start_as_magnet_it_stays_at_the_regularised_equilibrium(
    worst_case, on_the_cycle, assert_regularised_equilibrium
):
    held = EGPO(beta=2.0, pull=0.1, magnet="ref")
    assert worst_case(held, 320) == pytest.approx({320: 0.329}, abs=5e-4)
    assert_regularised_equilibrium(on_the_cycle(held, 1280)[-1], 2.0 * 0.1)
