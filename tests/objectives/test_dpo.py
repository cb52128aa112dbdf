"""Online DPO: its loss by hand, against autograd, and on rock-paper-scissors."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from openrlhf_gpm.objectives.dpo import DPO

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4


def test_the_loss_by_hand():
    # h of the first: 1 + 1 = 2, of the second: 0.5 - 0.5 = 0; beta h = log 3, so the policy gives the first 3/4
    given = {"drift_ref": torch.tensor([[1.0, -0.5]]), "label": torch.tensor([[1.0, 1.0]])}
    moved = torch.tensor([[1.0, 0.5]])
    assert DPO(beta=LOG3 / 2).loss(moved, given).tolist() == pytest.approx([-math.log(3 / 4)])
    given["label"] = torch.tensor([[0.6, 0.6]])
    expected = -0.6 * math.log(3 / 4) - 0.4 * math.log(1 / 4)
    assert DPO(beta=LOG3 / 2, soft=True).loss(moved, given).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_the_paper_written_with_log_probs(table, soft):
    """The slow reference: eq. 7 of arXiv 2305.18290 on the pair, with the log-probs of both policies."""
    means = [sum(table.scores[i, j] for j in range(4) if j != i) / 3 for i in range(4)]
    w, l = means.index(max(means)), means.index(min(means))
    ratio = table.log_probs - table.frozen["ref"]
    p = table.scores[w, l].sigmoid() if soft else 1.0
    expected = -p * logsigmoid(0.3 * (ratio[w] - ratio[l])) - (1 - p) * logsigmoid(0.3 * (ratio[l] - ratio[w]))
    loss = table.loss(DPO(beta=0.3, soft=soft))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(table.gradient(loss), table.gradient(expected))


def test_hard_labels_circle_and_only_the_average_comes_close(worst_case):
    assert worst_case(DPO(), 20, 80, 320) == pytest.approx({20: 0.305, 80: 0.327, 320: 0.314}, abs=5e-4)
    assert worst_case(DPO(), 1280, which="average") == pytest.approx({1280: 0.479}, abs=5e-4)


def test_with_soft_labels_the_last_policy_stops_where_the_reference_holds_it(worst_case):
    """The stronger the hold, the further from unbeatable: 0.475 with beta 0.1, 0.382 with 0.5."""
    assert worst_case(DPO(beta=0.5, soft=True), 20, 320, 1280) == pytest.approx(
        {20: 0.268, 320: 0.382, 1280: 0.382}, abs=5e-4
    )
    assert worst_case(DPO(beta=0.1, soft=True), 320, 1280, step_size=5.0) == pytest.approx(
        {320: 0.456, 1280: 0.475}, abs=5e-4
    )
