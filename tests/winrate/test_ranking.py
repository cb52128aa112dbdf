"""Bradley-Terry from a win matrix: by hand, against its own equations, and where a ranking has nothing to say."""

import math

import pytest
import torch

from openrlhf_gpm.core import bt_scores, group_probs
from openrlhf_gpm.winrate.ranking import bradley_terry, elo

ROCK_PAPER_SCISSORS = torch.tensor([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])


def test_two_policies_by_hand():
    """10 to 1 in odds are 400 points of Elo."""
    strengths = bradley_terry(torch.tensor([[1 / 2, 10 / 11], [1 / 11, 1 / 2]], dtype=torch.float64))
    assert strengths.tolist() == pytest.approx([math.log(10) / 2, -math.log(10) / 2])
    assert elo(strengths).tolist() == pytest.approx([1200, 800])


def test_a_matrix_that_a_ranking_makes_gives_the_ranking_back():
    torch.manual_seed(0)
    strengths = torch.randn(4, 6, dtype=torch.float64) * 3
    strengths -= strengths.mean(-1, keepdim=True)
    found = bradley_terry(group_probs(bt_scores(strengths)))
    torch.testing.assert_close(found, strengths, atol=1e-7, rtol=0)


def test_any_matrix_is_matched_in_the_wins_of_every_policy():
    torch.manual_seed(0)
    scores = torch.randn(50, 5, 5, dtype=torch.float64) * 6
    rates = torch.sigmoid(scores - scores.mT)
    predicted = group_probs(bt_scores(bradley_terry(rates)))
    torch.testing.assert_close(predicted.sum(-1), rates.sum(-1), atol=1e-8, rtol=0)


def test_policies_in_a_circle_are_equal_to_a_ranking():
    assert bradley_terry(ROCK_PAPER_SCISSORS).abs().max() < 1e-7


def test_a_policy_that_always_wins_has_a_high_rating_and_no_error():
    strengths = bradley_terry(torch.tensor([[0.5, 1.0, 1.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]))
    assert strengths[0] > 5
    assert strengths[1] == pytest.approx(strengths[2].item(), abs=1e-6)
