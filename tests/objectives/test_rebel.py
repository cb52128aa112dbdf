"""REBEL: its targets by hand, against autograd, and on rock-paper-scissors."""

import pytest
import torch

from openrlhf_gpm.core import Groups
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.rebel import REBEL

SCORES = torch.tensor([[[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0]]])


def test_the_target_by_hand():
    # s_hat = 3/2, 0, -3/2 over the two others
    given = REBEL(beta=0.5).prepare(Groups(SCORES))
    assert given["target"].tolist() == [[3.0, 0.0, -3.0]]
    # the pair (0, 2) has moved apart by 4 and should by 6
    assert REBEL(beta=0.5).loss(torch.tensor([[1.0, -3.0]]), {"target": given["target"][:, [0, 2]]}).tolist() == [4.0]


def test_the_gradient_is_that_of_the_paper_written_with_log_probs(table):
    """The slow reference: arXiv 2404.16767, algorithm 1, with eta 1 / beta; the paper's loss is beta^2 times ours."""
    eta, ratio = 1 / 0.7, table.log_probs - table.old
    reward = [sum(table.scores[i, j] for j in range(4) if j != i) / 3 for i in range(4)]
    pairs = [(0, 1), (2, 3)]
    expected = sum(((ratio[i] - ratio[j]) / eta - (reward[i] - reward[j])) ** 2 for i, j in pairs) / 2
    loss = table.loss(REBEL(beta=0.7))
    torch.testing.assert_close(loss, expected * eta**2)
    torch.testing.assert_close(table.gradient(loss), table.gradient(expected) * eta**2)


@pytest.mark.parametrize("pull", [0.0, 0.1])
def test_on_a_table_it_takes_the_steps_of_gpo(on_the_cycle, worst_case, pull):
    """Exact expectations over all pairs: a common part of the targets does not count, and nothing else is lost."""
    pairs, single = (kind(beta=10.0, pull=pull) for kind in (REBEL, GPO))
    torch.testing.assert_close(on_the_cycle(pairs, 80), on_the_cycle(single, 80))
    assert worst_case(pairs, 80) == pytest.approx({80: 0.489 if pull else 0.291}, abs=5e-4)
