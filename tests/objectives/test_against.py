"""Other opponents by hand: importance weights, answers beside the group, the unbeaten mixture of a league."""

import math

import pytest
import torch

from openrlhf_gpm import objectives
from openrlhf_gpm.core import Groups, embed_scores, group_probs, preference_score
from openrlhf_gpm.objectives.against import beside, mixture, others, too_few, unbeaten_mixture
from openrlhf_gpm.objectives.frozen import POLICIES
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.rebel import REBEL
from openrlhf_gpm.objectives.sppo import SPPO

LOG2, LOG3 = math.log(2), math.log(3)
SCORES = torch.tensor([[[0.0, 1.0, -2.0, 4.0], [-1.0, 0.0, 3.0, 0.5], [2.0, -3.0, 0.0, 1.0], [-4.0, -0.5, -1.0, 0.0]]])


def test_importance_weights_by_hand():
    """The second answer is four times as likely under the frozen policy: with half the exponent, twice the weight."""
    groups, size = mixture(Groups(SCORES), torch.tensor([[0.0, -2 * LOG2, 0.0, 0.0]]), share=0.5)
    expected = torch.tensor([(2 * 1.0 - 2.0 + 4.0) / 4, (-1.0 + 3.0 + 0.5) / 3])
    torch.testing.assert_close(groups.mean_score()[0, :2], expected)
    torch.testing.assert_close(size[0, :2], torch.tensor([1 / (0.25 + 2 / 16), 3.0]))


def test_a_group_whose_weights_collapse_plays_against_itself():
    drift = torch.tensor([[0.0, -9.0, 0.0, 0.0], [0.0, -0.1, 0.0, 0.0]])
    groups, size = mixture(Groups(SCORES.expand(2, 4, 4)), drift, share=1.0)
    assert too_few(size).tolist() == [True, False]
    torch.testing.assert_close(groups.mean_score()[0], Groups(SCORES).mean_score()[0])
    assert not torch.allclose(groups.mean_score()[1], Groups(SCORES).mean_score()[0])


def test_a_table_with_exact_weights_never_falls_back():
    weights = torch.tensor([[[0.97, 0.01, 0.01, 0.01]]])
    groups = Groups(SCORES, against=SCORES, weights=weights)
    mixed, size = mixture(groups, torch.tensor([[0.0, -1.0, 0.0, 0.0]]), share=1.0)
    assert too_few(size).all()
    expected = torch.tensor([0.97, 0.01 * math.e, 0.01, 0.01]) / (0.99 + 0.01 * math.e)
    torch.testing.assert_close(mixed.weights[0, 0], expected)


def test_without_drift_the_mixture_is_the_group():
    groups, _ = mixture(Groups(SCORES), torch.zeros(1, 4), share=1.0)
    torch.testing.assert_close(groups.mean_score(), Groups(SCORES).mean_score())
    torch.testing.assert_close(groups.win_rate(), Groups(SCORES).win_rate())


def test_other_answers_take_their_share_and_the_group_the_rest():
    against = torch.tensor([[[6.0, 0.0], [0.0, 3.0], [-3.0, 3.0], [9.0, 9.0]]])
    weights = torch.tensor([[2 / 3, 1 / 3]])
    groups = beside(Groups(SCORES), against, weights, 0.25, means_only=False)
    own = Groups(SCORES).mean_score()
    torch.testing.assert_close(groups.mean_score(), 0.75 * own + 0.25 * torch.tensor([[4.0, 1.0, -1.0, 9.0]]))
    torch.testing.assert_close(groups.weights.sum(-1), torch.ones(1, 4))
    rate = 0.75 * Groups(SCORES).win_rate() + 0.25 * (group_probs(against) * weights[:, None]).sum(-1)
    torch.testing.assert_close(groups.win_rate(), rate)


def test_a_group_without_other_answers_plays_against_itself():
    groups = beside(Groups(SCORES), torch.zeros(1, 4, 2), torch.zeros(1, 2), 0.9, means_only=False)
    torch.testing.assert_close(groups.mean_score(), Groups(SCORES).mean_score())


def test_decision_21_the_mean_embedding_gives_the_mean_score_against_all_answers():
    generator = torch.Generator().manual_seed(0)
    v, other, gate = (torch.randn(*size, generator=generator) for size in ((1, 4, 6), (1, 50, 6), (1, 1, 1, 3)))
    weights = torch.rand(1, 50, generator=generator)
    weights = weights / weights.sum()
    mean = (weights.unsqueeze(-1) * other).sum(1, keepdim=True)
    every, one = (preference_score(v.unsqueeze(2), u.unsqueeze(1), gate) for u in (other, mean))
    by_all = beside(Groups(SCORES), every, weights, 0.7, means_only=False)
    by_mean = beside(Groups(SCORES), one, torch.ones(1, 1), 0.7, means_only=True)
    torch.testing.assert_close(by_mean.mean_score(), by_all.mean_score())
    with pytest.raises(AssertionError, match="a win rate needs the opponent's answers"):
        by_mean.win_rate()


@pytest.mark.parametrize("name", objectives.classes())
def test_an_objective_that_says_so_reads_no_win_rates(name):
    objective = objectives.load(name)()
    if objective.reads_win_rates or objective.own_opponent:
        return
    drift = {policy: torch.zeros(1, 4) for policy in POLICIES}
    groups = beside(Groups(SCORES, drift=drift), torch.ones(1, 4, 1), torch.ones(1, 1), 0.5, means_only=True)
    objective.reward(groups)
    objective.select(groups)
    objective.prepare(groups)


def test_against_another_opponent_the_groups_mean_stands_for_log_z():
    """A stronger opponent lowers every score; the policy should not lose mass to answers that were not sampled."""
    groups = beside(Groups(SCORES), torch.full((1, 4, 1), -6.0), torch.ones(1, 1), 0.5, means_only=False)
    assert groups.mean_score().mean() == pytest.approx(-3.0)
    for objective in (GPO(), SPPO(), SPPO(hard=True)):
        assert objective.prepare(groups)["target"].mean() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(
        GPO().prepare(groups)["target"].diff(dim=-1), REBEL().prepare(groups)["target"].diff(dim=-1)
    )


def test_equal_weights_leave_out_the_response_itself():
    assert others(SCORES, torch.float64).tolist() == [[0.0 if i == j else 1 / 3 for j in range(4)] for i in range(4)]


def test_the_mixture_of_a_cyclic_league_is_unbeaten_by_hand():
    """Three policies that each give one answer of a cycle: a third each; one that loses to all gets nothing."""
    cycle = torch.tensor([[0.0, LOG3, -LOG3], [-LOG3, 0.0, LOG3], [LOG3, -LOG3, 0.0]])
    scores = torch.zeros(4, 4)
    scores[:3, :3], scores[:3, 3], scores[3, :3] = cycle, LOG3, -LOG3
    embeddings = embed_scores(scores)
    gate = torch.ones(embeddings.shape[-1] // 2)
    weights, rates = unbeaten_mixture([(embeddings, gate, torch.arange(4))], 4)
    torch.testing.assert_close(
        weights, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0], dtype=torch.float64), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(rates.float(), group_probs(scores))


def test_answers_of_a_policy_and_prompts_count_equally():
    """Two prompts; the first policy has two answers to the first, of which one wins and one loses."""
    two = torch.tensor([[0.0, 0.0, LOG3], [0.0, 0.0, -LOG3], [-LOG3, LOG3, 0.0]])
    one = torch.tensor([[0.0, LOG3], [-LOG3, 0.0]])
    answers = []
    for scores, owner in ((two, [0, 0, 1]), (one, [0, 1])):
        embeddings = embed_scores(scores)
        answers.append((embeddings, torch.ones(embeddings.shape[-1] // 2), torch.tensor(owner)))
    _, rates = unbeaten_mixture(answers, 2)
    assert rates[0, 1].item() == pytest.approx((0.5 + 0.75) / 2)
