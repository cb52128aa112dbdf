"""Nash-MD: its numbers by hand, against autograd, and on rock-paper-scissors."""

import math

import pytest
import torch

from openrlhf_gpm.core import Groups, group_probs
from openrlhf_gpm.core.tabular import play
from openrlhf_gpm.objectives.frozen import FrozenRules
from openrlhf_gpm.objectives.nash_md import NashMD

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
SCORES = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
START = torch.tensor([0.6, 0.3, 0.1])


def test_the_loss_by_hand():
    given = {"advantage": torch.tensor([0.25]), "drift_ref": torch.tensor([1.0])}
    # 0.5 / 2 (2 + 1)^2 - 0.25 x 2
    assert NashMD(beta=0.5).loss(torch.tensor([2.0]), given).tolist() == [1.75]


def test_the_advantage_is_against_the_mixture_by_hand():
    scores = torch.zeros(1, 4, 4)
    scores[0, 0, 1:] = torch.tensor([LOG3, -LOG3, LOG3])
    scores = scores - scores.mT
    drift = torch.tensor([[0.0, math.log(2), 0.0, 0.0]])  # half as likely under ref: half the weight, with a = 1
    given = NashMD(mixture=1.0).prepare(Groups(scores, drift={"ref": drift}))
    # the first meets the others with weights 1/5, 2/5, 2/5
    assert given["advantage"][0, 0].item() == pytest.approx(0.75 / 5 + 0.25 * 2 / 5 + 0.75 * 2 / 5 - 0.5, abs=1e-6)
    assert given["opponent_size"][0, 0].item() == pytest.approx(1 / (1 / 25 + 4 / 25 + 4 / 25))
    assert given["drift_ref"] is drift


def test_the_gradient_is_the_papers_policy_gradient(table):
    """The slow reference: the mean over y ~ pi of -(P(y > mixture) - 1/2 - tau log(pi / ref)) grad log pi."""
    with torch.no_grad():
        table.logits.copy_(table.old)  # on policy
    tau, share, ref, old = 0.3, 0.4, table.frozen["ref"], table.old
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        weights = [math.exp(share * (ref[j] - old[j])) for j in others]
        rate = sum(w * table.scores[i, j].sigmoid() for w, j in zip(weights, others, strict=True)) / sum(weights)
        gain = rate - 0.5 - tau * (old[i] - ref[i])
        loss = loss - gain * table.log_probs[i] / 4
    torch.testing.assert_close(
        table.gradient(table.loss(NashMD(beta=tau, mixture=share))), table.gradient(loss), atol=1e-12, rtol=1e-9
    )


def test_on_a_table_it_is_nash_mirror_descent():
    """pi -> pi^(1 - eta tau) ref^(eta tau) exp(eta P(y > mixture)), eta the step size: the paper's algorithm."""
    objective, eta = NashMD(beta=0.2, mixture=0.1), 0.5
    policies = play(objective, SCORES, START, 3, step_size=eta, share=FrozenRules().share)
    probs, ref = group_probs(SCORES).double(), START.double().log().log_softmax(-1)
    pi = ref
    for policy in policies[1:]:
        mixed = (0.9 * pi + 0.1 * ref).softmax(-1)
        pi = ((1 - eta * 0.2) * pi + eta * 0.2 * ref + eta * probs @ mixed).log_softmax(-1)
        torch.testing.assert_close(policy, pi.exp())


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"beta": -0.1}, "--nash_md.beta must be at least 0 and finite, got -0.1"),
        ({"beta": math.nan}, "--nash_md.beta must be at least 0 and finite, got nan"),
        ({"mixture": 1.5}, "--nash_md.mixture must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_settings_are_refused_with_their_flag(flags, error):
    with pytest.raises(ValueError, match="--nash_md") as refused:
        NashMD(**flags)
    assert str(refused.value) == error


def test_with_enough_beta_the_last_policy_converges_to_the_regularised_equilibrium(
    worst_case, on_the_cycle, assert_regularised_equilibrium
):
    assert worst_case(NashMD(), 20, 80, 320) == pytest.approx({20: 0.355, 80: 0.429, 320: 0.453}, abs=5e-4)
    assert_regularised_equilibrium(on_the_cycle(NashMD(beta=0.2, mixture=0.0), 1280)[-1], 0.2)


def test_a_small_beta_circles_with_steps_of_this_size(worst_case):
    small = NashMD(beta=0.008)
    assert worst_case(small, 20, 80, 320) == pytest.approx({20: 0.353, 80: 0.312, 320: 0.272}, abs=5e-4)
    assert worst_case(small, 1280, which="average") == pytest.approx({1280: 0.476}, abs=5e-4)
