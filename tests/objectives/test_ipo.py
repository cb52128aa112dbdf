"""Online IPO: its loss by hand, against autograd, and on rock-paper-scissors."""

import pytest
import torch

from openrlhf_gpm.objectives.inpo import INPO
from openrlhf_gpm.objectives.ipo import IPO


def test_the_loss_by_hand():
    # margin 2 - 0; the paper's 1 / (2 tau) is 2.5, and (0.7 - 1/2) / tau is 1
    given = {"drift_ref": torch.tensor([[1.0, -0.5]]), "label": torch.tensor([[1.0, 1.0]])}
    moved = torch.tensor([[1.0, 0.5]])
    assert IPO(beta=0.2).loss(moved, given).tolist() == pytest.approx([0.25])
    given["label"] = torch.tensor([[0.7, 0.7]])
    assert IPO(beta=0.2).loss(moved, given).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_the_paper_written_with_log_probs(table, soft):
    """The slow reference: eq. 17 of arXiv 2310.12036; soft, its mean over labels drawn with the probability."""
    means = [sum(table.scores[i, j] for j in range(4) if j != i) / 3 for i in range(4)]
    w, l = means.index(max(means)), means.index(min(means))
    ratio = table.log_probs - table.frozen["ref"]
    p = table.scores[w, l].sigmoid() if soft else 1.0
    margin, aim = ratio[w] - ratio[l], 1 / (2 * 0.3)
    expected = p * (margin - aim) ** 2 + (1 - p) * (-margin - aim) ** 2
    torch.testing.assert_close(table.gradient(table.loss(IPO(beta=0.3, soft=soft))), table.gradient(expected))


def test_with_soft_labels_the_last_policy_is_the_regularised_equilibrium(
    worst_case, on_the_cycle, assert_regularised_equilibrium
):
    """As arXiv 2403.08635 says of online IPO. It is not unbeatable: the start of the run holds it."""
    policies = on_the_cycle(IPO(soft=True), 1280, step_size=0.05)
    assert_regularised_equilibrium(policies[-1], 0.1)
    assert worst_case(IPO(soft=True), 80, 320, step_size=0.05) == pytest.approx({80: 0.399, 320: 0.400}, abs=5e-4)


def test_steps_that_go_all_the_way_to_the_target_jump_between_answers(worst_case):
    assert worst_case(IPO(soft=True), 20, 320) == pytest.approx({20: 0.107, 320: 0.107}, abs=5e-4)


def test_hard_labels_circle(worst_case):
    assert worst_case(IPO(), 80, 320, step_size=0.05) == pytest.approx({80: 0.363, 320: 0.312}, abs=5e-4)
    assert worst_case(IPO(), 1280, which="average", step_size=0.05) == pytest.approx({1280: 0.428}, abs=5e-4)


def test_with_soft_labels_in_small_steps_it_is_inpo(on_the_cycle):
    """A step of size s goes 2 s of the way to INPO's regularised target: its beta is beta / 2 s, its pull is 2 s."""
    inpo = on_the_cycle(INPO(beta=1.0, ref_pull=0.1), 80)
    torch.testing.assert_close(on_the_cycle(IPO(beta=0.1, soft=True), 80, step_size=0.05), inpo)
