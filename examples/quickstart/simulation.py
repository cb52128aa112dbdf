"""The same experiment without neural networks: tables, exact expectations, exact steps. The reference curve.

Notation: K answers, T steps.
"""

from typing import Any

import torch
from commands import RUNS, Settings
from torch import Tensor
from world import GAMES

from openrlhf_gpm.core import bt_scores
from openrlhf_gpm.core.tabular import play
from openrlhf_gpm.objectives.frozen import FrozenRules


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


def simulate(measurements: dict[str, Any], settings: Settings) -> dict[str, list[Tensor]]:
    """Every run on tables, from the measured start: per game the policies (T + 1, K), the start first.

    bt plays the maximum likelihood rewards of the very comparisons that were sampled, the others the true scores.
    """
    runs: dict[str, list[Tensor]] = {run: [] for run in RUNS}
    for game, row in zip(GAMES, measurements["games"], strict=True):
        start = torch.tensor(row["policies"]["gpm"][0], dtype=torch.float64)
        rewards = fit_bradley_terry(torch.tensor(row["wins"]))
        for run, kind in RUNS.items():
            scores = bt_scores(rewards) if kind == "bt" else game.scores
            runs[run].append(play(settings.objective(run), scores, start, settings.steps, share=FrozenRules().share))
    return runs
