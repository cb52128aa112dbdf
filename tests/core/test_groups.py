"""Groups of judged responses: the group as the opponent, another opponent, and what is refused."""

import math

import pytest
import torch

from openrlhf_gpm.core import Groups, mean_scores, win_rates

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
SCORES = torch.tensor([[[0.0, LOG3, LOG3], [-LOG3, 0.0, 0.0], [-LOG3, 0.0, 0.0]]])


def test_the_opponent_is_the_rest_of_the_group_by_default_by_hand():
    groups = Groups(SCORES)
    torch.testing.assert_close(groups.mean_score(), LOG3 * torch.tensor([[1.0, -1 / 2, -1 / 2]]))
    torch.testing.assert_close(groups.win_rate(), torch.tensor([[3 / 4, 3 / 8, 3 / 8]]))
    torch.testing.assert_close(groups.win_rate(hard=True), torch.tensor([[1.0, 1 / 4, 1 / 4]]))


def test_include_self_is_the_papers_mean_over_all_k_by_hand():
    groups = Groups(SCORES)
    torch.testing.assert_close(groups.mean_score(include_self=True), LOG3 * torch.tensor([[2 / 3, -1 / 3, -1 / 3]]))
    torch.testing.assert_close(groups.win_rate(include_self=True), torch.tensor([[2 / 3, 5 / 12, 5 / 12]]))
    expected = torch.tensor([[5 / 6, 1 / 3, 1 / 3]])
    torch.testing.assert_close(groups.win_rate(hard=True, include_self=True), expected)


def test_a_group_does_not_see_its_neighbours():
    m = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0))
    scores = m - m.mT
    groups = Groups(scores)
    torch.testing.assert_close(groups.mean_score(), torch.stack([mean_scores(one) for one in scores]))
    torch.testing.assert_close(groups.win_rate(), torch.stack([win_rates(one) for one in scores]))


def test_another_opponent_takes_the_place_of_the_group():
    """Three responses against two answers of an opponent who gives the first in 1 of 4 cases."""
    against = torch.tensor([[[LOG3, -LOG3], [0.0, 0.0], [-1.0, 2.0]]])
    groups = Groups(SCORES, against=against, weights=torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(groups.mean_score(), torch.tensor([[-LOG3 / 2, 0.0, 1.25]]))
    torch.testing.assert_close(groups.win_rate()[0, :2], torch.tensor([0.25 * 3 / 4 + 0.75 / 4, 0.5]))
    torch.testing.assert_close(groups.win_rate(hard=True), torch.tensor([[0.25, 0.5, 0.75]]))
    assert torch.equal(groups.mean_score(include_self=True), groups.mean_score())  # no response meets itself


def test_each_response_may_have_weights_of_its_own():
    weights = torch.tensor([[[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]])
    groups = Groups(SCORES, against=SCORES, weights=weights)
    torch.testing.assert_close(groups.mean_score(), Groups(SCORES).mean_score())
    torch.testing.assert_close(groups.win_rate(), Groups(SCORES).win_rate())


@pytest.mark.parametrize("opponent", [False, True])
def test_nan_is_neither_a_win_nor_a_loss(opponent):
    scores = torch.tensor([[[0.0, math.nan], [math.nan, 0.0]]])
    groups = Groups(scores, scores, torch.full((1, 1, 2), 0.5)) if opponent else Groups(scores)
    assert groups.win_rate(hard=True).isnan().all()
    assert groups.win_rate().isnan().all()
    assert groups.mean_score().isnan().all()


def test_statistics_are_fp32_for_lower_precision_scores_and_float64_stays():
    weights = torch.full((1, 1, 3), 1 / 3)
    for dtype, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        scores = SCORES.to(dtype)
        for groups in (Groups(scores), Groups(scores, scores, weights)):
            assert groups.mean_score().dtype == groups.win_rate().dtype == groups.win_rate(hard=True).dtype == kept


def test_a_group_of_one_and_scores_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"raise --rollout\.n_samples_per_prompt"):
        Groups(torch.zeros(4, 1, 1))
    with pytest.raises(ValueError, match=r"must be \(\.\.\., K, K\)"):
        Groups(torch.zeros(4, 3))


def test_answers_of_another_opponent_need_weights_and_weights_need_answers():
    scores = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="go together"):
        Groups(scores, against=scores)
    with pytest.raises(ValueError, match="go together"):
        Groups(scores, weights=torch.ones(1, 2, 2))
