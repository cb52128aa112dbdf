"""The paper's thesis on a game small enough to enumerate: self-play on rock-paper-scissors.

The policy is a table over three answers. In every round a group is drawn from it (each answer in proportion to its
probability), scored, and the policy moves by the target: the exact minimiser of the regression for a table. The
average over the rounds approaches the von Neumann winner under GPO and SPPO; a Bradley-Terry reward cannot.
"""

import math

import pytest
import torch
from torch import Tensor

from openrlhf_gpm.core import (
    bt_scores,
    embed_rewards,
    embed_scores,
    exploitability,
    gpo_target,
    group_probs,
    group_scores,
    policy_regression_loss,
    preference_loss,
    sppo_target,
    von_neumann_winner,
)

CYCLE = torch.tensor([[0.0, 3.0, -3.0], [-3.0, 0.0, 3.0], [3.0, -3.0, 0.0]])
PROBS = group_probs(CYCLE)
START = torch.tensor([0.6, 0.3, 0.1])
GPM = embed_scores(CYCLE, compact=True)  # the oracle GPM: one plane


def self_play(embedding: Tensor, target, rounds: int, group_size: int = 240) -> tuple[Tensor, Tensor]:
    """Play `rounds` rounds from START; return the last and the average policy, (3,) each."""
    log_policy, total = START.log(), torch.zeros(3)
    for _ in range(rounds):
        policy = log_policy.softmax(-1)
        total += policy
        counts = (group_size * policy).round().long().clamp(min=1)
        group = torch.arange(3).repeat_interleave(counts)  # the answers of this round's group
        moves = torch.zeros(3).scatter(0, group, target(group_scores(embedding[group])))  # equal answers move equally
        log_policy = (log_policy + moves).log_softmax(-1)
    return log_policy.softmax(-1), total / rounds


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


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(lambda s: gpo_target(s, beta=20.0, include_self=True), id="gpo"),
        pytest.param(lambda s: gpo_target(s, beta=20.0, include_self=True, baseline="log_z"), id="gpo-log_z"),
        pytest.param(lambda s: sppo_target(s, beta=4.0, include_self=True), id="sppo"),
        pytest.param(lambda s: sppo_target(s, beta=4.0, include_self=True, hard=True), id="sppo-hard"),
    ],
)
def test_average_policy_of_self_play_becomes_unexploitable(target):
    gaps = [exploitability(PROBS, self_play(GPM, target, rounds)[1]).item() for rounds in (1, 200, 800)]
    assert gaps[0] > 0.1
    assert gaps[2] < 0.02
    assert gaps[2] < gaps[1] < gaps[0]


def test_bradley_terry_reward_drives_the_same_self_play_to_one_pure_answer_that_always_has_a_beater():
    rewards = fit_bradley_terry()
    last, average = self_play(embed_rewards(rewards), lambda s: gpo_target(s, beta=1.0, include_self=True), rounds=300)
    assert last.max() > 0.99
    assert last.argmax() == rewards.argmax()
    most = (1 / (1 + math.exp(-3)) - 0.5) * 0.95  # a pure answer loses to its beater with probability sigmoid(3)
    assert exploitability(PROBS, last) > most
    assert exploitability(PROBS, average) > most * 0.9
    assert exploitability(PROBS, von_neumann_winner(CYCLE)) < 1e-6
    assert von_neumann_winner(bt_scores(rewards)).max() == 1.0


def test_decision_11_minimising_the_regression_with_log_z_gives_the_multiplicative_step_exactly():
    """eq. 5.7 by gradient descent on a table of logits, beta = 1: the minimum is 0, at pi_t exp(s_hat) / Z."""
    log_opponent = START.log()
    group = torch.arange(3).repeat_interleave(torch.tensor([6, 3, 1]))  # pi_t itself
    target = gpo_target(group_scores(GPM[group]), beta=1.0, include_self=True, baseline="log_z")
    logits = log_opponent.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_ratio = (logits.log_softmax(-1) - log_opponent)[group]
        value = policy_regression_loss(log_ratio, target).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert loss().item() < 1e-6
    s_hat = CYCLE @ START  # the exact mean score against pi_t
    torch.testing.assert_close(
        logits.softmax(-1), START * s_hat.exp() / (START * s_hat.exp()).sum(), atol=1e-4, rtol=0
    )
