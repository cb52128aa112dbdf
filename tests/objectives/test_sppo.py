"""SPPO's targets: win rates less 1/2, soft or counted (decision 12)."""

import math

import torch
from torch import Tensor

from openrlhf_gpm.core import Groups
from openrlhf_gpm.objectives.sppo import SPPO

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4


def target(scores: Tensor, **flags) -> Tensor:
    """(K, K) -> (K,)."""
    return SPPO(**flags).prepare(Groups(scores[None]))["target"][0]


def test_decision_12_sppo_target_by_hand():
    scores = torch.tensor([[0.0, LOG3, LOG3], [-LOG3, 0.0, 0.0], [-LOG3, 0.0, 0.0]])
    # win rates 3/4, 3/8, 3/8 over the two others; 2/3, 5/12, 5/12 over all three
    torch.testing.assert_close(target(scores, beta=0.25), torch.tensor([1.0, -0.5, -0.5]))
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3])
    torch.testing.assert_close(target(scores, beta=0.25, include_self=True), expected)


def test_decision_12_hard_sppo_counts_wins_and_halves_ties():
    scores = torch.tensor([[0.0, 0.1, 5.0], [-0.1, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    assert target(scores, beta=1.0, hard=True).tolist() == [0.5, -0.25, -0.25]
    expected = torch.tensor([(0.5 + 1 + 1) / 3 - 0.5, (0 + 0.5 + 0.5) / 3 - 0.5, (0 + 0.5 + 0.5) / 3 - 0.5])
    torch.testing.assert_close(target(scores, beta=1.0, hard=True, include_self=True), expected)


def test_a_nan_score_is_not_counted_as_a_loss():
    scores = torch.tensor([[0.0, math.nan], [math.nan, 0.0]])
    assert target(scores, beta=1.0, hard=True).isnan().all()


def test_the_reward_and_the_choice_of_best_and_worst_are_by_win_rate():
    """Score and win rate disagree: the first response wins once by a lot, the second twice by a little."""
    scores = torch.tensor([[[0.0, -2.0, 9.0], [2.0, 0.0, 2.0], [-9.0, -2.0, 0.0]]])
    objective = SPPO(responses="best_worst")
    torch.testing.assert_close(objective.reward(Groups(scores)), Groups(scores).win_rate())
    assert objective.select(Groups(scores)).tolist() == [[1, 2]]
    assert Groups(scores).mean_score().argmax().item() == 0
