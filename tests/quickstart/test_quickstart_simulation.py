"""The exact simulation: maximum likelihood Bradley-Terry, and what self-play leads to."""

import math

import pytest
import torch
from simulation import fit_bradley_terry
from world import GAMES, sample_wins, start_policy

from openrlhf_gpm.core import bt_scores, worst_case_win_rate
from openrlhf_gpm.core.tabular import play, worst_cases
from openrlhf_gpm.objectives.gpo import GPO

STEPS, BETA = 20, 5.0


def test_two_answers_get_the_log_odds_of_their_wins():
    rewards = fit_bradley_terry(torch.tensor([[0, 30], [10, 0]]))
    torch.testing.assert_close(rewards, torch.tensor([math.log(3) / 2, -math.log(3) / 2], dtype=torch.float64))


def test_the_fit_matches_observed_and_expected_wins_of_every_answer():
    """The likelihood equations of Bradley-Terry."""
    wins = sample_wins(GAMES[2], seed=0)
    expected = (wins + wins.mT) * torch.sigmoid(bt_scores(fit_bradley_terry(wins)))
    torch.testing.assert_close(expected.sum(-1), wins.double().sum(-1), atol=1e-3, rtol=0)


def test_an_even_cycle_gets_equal_rewards():
    """Evenly sampled rock, paper, scissors: no reward, whatever the strength of the preferences."""
    wins = torch.tensor([[0, 9, 1], [1, 0, 9], [9, 1, 0]])
    torch.testing.assert_close(fit_bradley_terry(wins), torch.zeros(3, dtype=torch.float64))


def test_self_play_against_the_truth_is_hard_to_exploit_on_average_and_against_bradley_terry_is_not():
    """The reference curve: about 0.45 against 0.16 to 0.29, as stated for this game and these counts."""
    averages = {"gpm": [], "bt": []}
    for game in GAMES:
        start = start_policy(game)
        assert worst_case_win_rate(game.probs, start) < 0.38
        rewards = fit_bradley_terry(game.counts * game.probs)  # infinitely many comparisons in the same proportions
        for kind, scores in (("gpm", game.scores), ("bt", bt_scores(rewards))):
            policies = play(GPO(beta=BETA), scores, start, STEPS)
            averages[kind].append(worst_cases(game.probs, policies)["average"])
            assert policies[-1, -1] < 1e-4  # the dominated answer
            torch.testing.assert_close(policies.sum(-1), torch.ones(STEPS + 1, dtype=torch.float64))
    assert min(averages["gpm"]) > 0.43
    assert sum(averages["gpm"]) / 3 == pytest.approx(0.45, abs=0.01)
    assert min(averages["bt"]) > 0.15
    assert max(averages["bt"]) < 0.30
