"""The exact simulation: maximum likelihood Bradley-Terry, and what self-play leads to."""

import math
from pathlib import Path

import pytest
import torch
from simulation import fit_bradley_terry
from world import GAMES, sample_wins, start_policy

from openrlhf_gpm.core import bt_scores, worst_case_win_rate
from openrlhf_gpm.core.tabular import play, worst_cases
from openrlhf_gpm.objectives.egpo import EGPO
from openrlhf_gpm.objectives.frozen import FrozenRules
from openrlhf_gpm.objectives.gpo import GPO

DOCS = Path(__file__).parents[2] / "docs" / "objectives.md"
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


TABLE = [  # of docs/objectives.md: win rate of the last policy against its best opponent, mean over the games
    (GPO(beta=5.0), {20: 0.349, 40: 0.327, 80: 0.230, 160: 0.272}),
    (GPO(beta=5.0, pull=0.1), {20: 0.448, 40: 0.477, 80: 0.496, 160: 0.499}),
    (GPO(beta=3.3, pull=0.2), {20: 0.482, 40: 0.488, 80: 0.498, 160: 0.500}),
    (GPO(beta=3.3, pull=0.2, magnet="ref"), {20: 0.431, 40: 0.436, 80: 0.435, 160: 0.435}),
]


def played(objective, steps: int) -> list[dict[str, float]]:
    """Per game the worst cases of start, last and average."""
    share = FrozenRules().share
    return [
        worst_cases(game.probs, play(objective, game.scores, start_policy(game), steps, share=share)) for game in GAMES
    ]


@pytest.mark.parametrize(("objective", "expected"), TABLE, ids=["plain", "pull 0.1", "pull 0.2", "ref"])
def test_the_last_policy_is_as_the_table_of_the_docs_says(objective, expected):
    found = {steps: sum(case["last"] for case in played(objective, steps)) / 3 for steps in expected}
    assert found == pytest.approx(expected, abs=5e-4)
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `--gpo.beta")]
    cells = " | ".join(f"{value:.3f}" for value in expected.values())
    assert any(cells in row for row in rows)


def test_with_the_magnet_the_last_policy_is_hard_to_exploit_in_every_game():
    assert min(case["last"] for case in played(GPO(beta=3.3, pull=0.2), 80)) >= 0.48


def test_the_average_of_plain_gpo_goes_to_one_half():
    early, late = (min(case["average"] for case in played(GPO(beta=5.0), steps)) for steps in (20, 640))
    assert early < late
    assert late > 0.48


def test_the_last_policy_of_extragradient_converges_without_a_magnet():
    cases = played(EGPO(beta=1.0), 320)
    assert min(case["last"] for case in cases) >= 0.45
