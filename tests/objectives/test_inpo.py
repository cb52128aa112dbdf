"""INPO: its targets by hand, against autograd, and on rock-paper-scissors."""

import math

import pytest
import torch

from openrlhf_gpm.core import Groups
from openrlhf_gpm.objectives.inpo import INPO

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4


def test_the_target_by_hand():
    scores = torch.tensor([[[0.0, LOG3, LOG3], [-LOG3, 0.0, 0.0], [-LOG3, 0.0, 0.0]]])
    groups = Groups(scores, drift={"ref": torch.tensor([[1.0, 0.0, -2.0]])})
    # win rates 3/4, 3/8, 3/8; less 1/2, over beta, less half the drift
    target = INPO(beta=0.25, ref_pull=0.5).prepare(groups)["target"]
    torch.testing.assert_close(target, torch.tensor([[1.0 - 0.5, -0.5, -0.5 + 1.0]]))


def test_the_gradient_is_that_of_the_paper_written_with_log_probs(table):
    """The slow reference: arXiv 2407.00617 with h_t of three policies; eta = beta, tau = eta ref_pull."""
    eta, tau = 0.7, 0.7 * 0.3
    new, old, ref = table.log_probs, table.old, table.frozen["ref"]
    rate = [sum(table.scores[i, j].sigmoid() for j in range(4) if j != i) / 3 for i in range(4)]

    def h(i: int, j: int) -> torch.Tensor:
        return (new[i] - new[j]) - tau / eta * (ref[i] - ref[j]) - (eta - tau) / eta * (old[i] - old[j])

    expected = sum((h(i, j) - (rate[i] - rate[j]) / eta) ** 2 for i, j in [(0, 1), (2, 3)]) / 2
    loss = table.loss(INPO(beta=eta, ref_pull=0.3))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(table.gradient(loss), table.gradient(expected))


def test_the_mean_over_pairs_has_the_gradient_of_the_papers_loss_of_drawn_labels(table):
    """Over all pairs, each labelled by a draw: h -> +1 / (2 eta) for the winner. The minimum is the same."""
    eta, new, old = 0.7, table.log_probs, table.old
    probs = table.scores.sigmoid()
    rate = probs.mean(-1)  # pairs of equals included, as for two independent answers of a uniform policy
    ours = drawn = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            h = (new[i] - new[j]) - (old[i] - old[j])
            ours = ours + (h - (rate[i] - rate[j]) / eta) ** 2
            drawn = drawn + probs[i, j] * (h - 1 / (2 * eta)) ** 2 + probs[j, i] * (h + 1 / (2 * eta)) ** 2
    torch.testing.assert_close(table.gradient(ours), table.gradient(drawn))


def test_the_reference_is_needed_where_it_pulls():
    assert INPO().needs == ("ref",)
    assert INPO(ref_pull=0.0).needs == ()
    with pytest.raises(ValueError, match=r"--gpo\.ref_pull must be from 0 to 1, got 1\.5"):
        INPO(ref_pull=1.5)


def test_the_last_policy_stops_where_the_reference_holds_it(worst_case, on_the_cycle, assert_regularised_equilibrium):
    """beta ref_pull is the paper's tau: the smaller, the nearer to unbeatable, and the longer it takes."""
    assert worst_case(INPO(beta=2.0), 20, 320) == pytest.approx({20: 0.308, 320: 0.329}, abs=5e-4)
    assert worst_case(INPO(beta=2.0, ref_pull=0.02), 20, 80, 1280) == pytest.approx(
        {20: 0.390, 80: 0.418, 1280: 0.460}, abs=5e-4
    )
    assert_regularised_equilibrium(on_the_cycle(INPO(beta=2.0), 1280)[-1], 2.0 * 0.1)


def test_a_step_too_large_for_the_pull_circles(worst_case):
    assert worst_case(INPO(beta=0.5), 80, 320, 1280) == pytest.approx({80: 0.301, 320: 0.370, 1280: 0.306}, abs=5e-4)
