"""The paper's thesis on a game small enough to enumerate: self-play on rock-paper-scissors.

The policy is a table over three answers; every objective trains it as it trains a language model. The average over
the steps approaches the von Neumann winner; a Bradley-Terry reward leads to a pure answer, which another one beats.
"""

import math

import pytest
import torch
from torch import Tensor

from openrlhf_gpm import objectives
from openrlhf_gpm.core import (
    bt_scores,
    embed_scores,
    exploitability,
    group_probs,
    group_scores,
    preference_loss,
    von_neumann_winner,
)
from openrlhf_gpm.core.tabular import play
from openrlhf_gpm.objectives.frozen import FrozenRules
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.objective import Objective
from openrlhf_gpm.objectives.sppo import SPPO

CYCLE = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
PROBS = group_probs(CYCLE).double()
START = torch.tensor([0.6, 0.3, 0.1])
GPM = group_scores(embed_scores(CYCLE, compact=True))  # as an oracle GPM scores: one plane
every_objective = pytest.mark.parametrize("name", objectives.classes())


def gaps(policies: Tensor) -> list[float]:
    """Exploitability of the average policy of the first step, of 200 and of 800."""
    return [exploitability(PROBS, policies[:steps].mean(0)).item() for steps in (1, 200, 800)]


def fit_bradley_terry() -> Tensor:
    """Rewards (3,) fitted to comparisons from the cycle, the three pairs seen unevenly as in real data."""
    winner = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([5, 3, 2]))
    rewards = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([rewards], lr=2.0)
    for _ in range(100):
        optimizer.zero_grad()
        preference_loss(rewards[winner] - rewards[(winner + 1) % 3], PROBS[winner, (winner + 1) % 3]).backward()
        optimizer.step()
    return rewards.detach()


def self_play(objective: Objective, scores: Tensor, steps: int, step_size: float = 0.5) -> Tensor:
    return play(objective, scores, START, steps, step_size, FrozenRules().share)


@every_objective
def test_every_objective_plays_rock_paper_scissors(name):
    """The average becomes unexploitable, except where the start of the run holds the policy; it still improves."""
    objective = objectives.load(name)()
    policies = self_play(objective, GPM, steps=800, step_size=0.1)
    assert policies.isfinite().all()
    first, middle, last = gaps(policies)
    assert last < first
    if "ref" not in objective.needs:
        assert last < middle
        assert last < 0.02


@every_objective
def test_every_objective_follows_a_bradley_terry_reward_to_one_pure_answer(name):
    rewards = fit_bradley_terry()
    objective = objectives.load(name)()
    policies = self_play(objective, bt_scores(rewards), steps=2000)
    assert policies.isfinite().all()
    assert policies[-1].max() > (0.9 if "ref" in objective.needs else 0.99)
    assert policies[-1].argmax() == rewards.argmax()


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(GPO(beta=20.0), id="gpo"),
        pytest.param(GPO(beta=20.0, baseline="log_z"), id="gpo-log_z"),
        pytest.param(SPPO(beta=4.0), id="sppo"),
        pytest.param(SPPO(beta=4.0, hard=True), id="sppo-hard"),
    ],
)
def test_average_policy_of_self_play_becomes_unexploitable(objective):
    first, middle, last = gaps(play(objective, GPM, START, steps=800))
    assert first > 0.1
    assert last < 0.02
    assert last < middle < first


def test_bradley_terry_reward_drives_the_same_self_play_to_one_pure_answer_that_always_has_a_beater():
    rewards = fit_bradley_terry()
    policies = play(GPO(beta=1.0), bt_scores(rewards), START, steps=300)
    last, average = policies[-1], policies[:300].mean(0)
    assert last.max() > 0.99
    assert last.argmax() == rewards.argmax()
    most = (1 / (1 + math.exp(-3)) - 0.5) * 0.95  # a pure answer loses to its beater with probability sigmoid(3)
    assert exploitability(PROBS, last) > most
    assert exploitability(PROBS, average) > most * 0.9
    assert exploitability(PROBS, von_neumann_winner(CYCLE)) < 1e-6
    assert von_neumann_winner(bt_scores(rewards)).max() == 1.0
