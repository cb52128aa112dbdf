"""What the reward trainer tells OpenRLHF of a batch."""

import torch

from openrlhf_gpm.trainer.reward.trainer import preferred_score


def test_the_score_of_the_preferred_answer_by_hand_and_ties_are_never_right():
    score = torch.tensor([2.0, 2.0, -1.0, 0.0, 3.0, -3.0])
    label = torch.tensor([1.0, 0.2, 0.7, 1.0, 0.5, 0.5])
    preferred = preferred_score(score, label)
    assert preferred.tolist() == [2, -2, -1, 0, 0, 0]
    assert (preferred > 0).tolist() == [True, False, False, False, False, False]


def test_writing_a_comparison_the_other_way_round_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    score, label = torch.randn(50, generator=generator), torch.rand(50, generator=generator)
    label[::5] = 0.5
    torch.testing.assert_close(preferred_score(score, label), preferred_score(-score, 1 - label))
