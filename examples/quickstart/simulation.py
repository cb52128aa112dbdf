"""The same experiment without neural networks: tables, exact expectations, exact updates. The reference curve.

What GPO regresses on (arXiv 2410.02197, eq. 5.7) has the minimiser pi_{t+1} = pi_t exp(s_hat / beta) / Z with
s_hat_i = sum_j pi_t(j) s(i > j). Notation: K answers, T steps.
"""

import torch
from torch import Tensor

from openrlhf_gpm.core import bt_scores, worst_case_win_rate


def fit_bradley_terry(wins: Tensor, ridge: float = 1e-6, steps: int = 50) -> Tensor:
    """Maximum likelihood rewards from win counts, by Newton's method: (K, K) -> (K,) float64, mean 0.

    wins[i, j]: how often i beat j. The ridge keeps an answer that never lost finite.
    """
    wins = wins.double()
    total = wins + wins.mT
    rewards = torch.zeros(len(wins), dtype=torch.float64)
    eye = torch.eye(len(wins), dtype=torch.float64)
    for _ in range(steps):
        probs = torch.sigmoid(bt_scores(rewards))
        gradient = (wins - total * probs).sum(-1) - ridge * rewards
        weights = total * probs * (1 - probs)
        hessian = torch.diag(weights.sum(-1)) - weights + ridge * eye
        rewards = rewards + torch.linalg.solve(hessian, gradient)
    return rewards - rewards.mean()


def self_play(scores: Tensor, start: Tensor, steps: int, beta: float) -> Tensor:
    """GPO with exact expectations: scores (K, K) log-odds, start (K,) -> policies (T + 1, K), the start first."""
    policies = [start / start.sum()]
    for _ in range(steps):
        log_policy = policies[-1].log() + scores @ policies[-1] / beta
        policies.append(log_policy.softmax(-1))
    return torch.stack(policies)


def running_average(policies: Tensor) -> Tensor:
    """(T + 1, K) -> (T + 1, K): row t is the mean of the rows up to t. The last row is the average iterate."""
    steps = torch.arange(1, len(policies) + 1, dtype=policies.dtype).unsqueeze(-1)
    return policies.cumsum(0) / steps


def worst_cases(probs: Tensor, policies: Tensor) -> dict[str, float]:
    """Win rate against the best opponent, of the start, the last and the average policy.

    probs: (K, K) truth; policies: (T + 1, K). Mass that a policy leaves to texts outside the game counts as lost.
    """
    average = policies.mean(0)
    named = {"start": policies[0], "last": policies[-1], "average": average}
    return {name: float(worst_case_win_rate(probs, policy)) for name, policy in named.items()}
