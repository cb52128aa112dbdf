"""Measurements -> metrics.json: accuracy and NLL of the reward models, worst-case win rates of the policies.

Notation: n the size of a cycle, K = n + 1 answers, T steps. Every key "3", "4", "5" is the size of a cycle.
"""

from collections.abc import Callable, Iterable
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from simulation import fit_bradley_terry, simulate
from torch import Tensor
from world import GAMES, Game

from openrlhf_gpm.core import bt_scores
from openrlhf_gpm.core.tabular import worst_cases

GOALS = {"gpm_accuracy": 1.0, "worst_case": 0.40, "lead": 0.15, "dominated": 0.05}


def pair_accuracy(game: Game, scores: Tensor) -> float:
    """Share of the pairs with a truly better answer that the scores (K, K) order rightly; a tie is wrong."""
    better, worse = torch.tensor(game.decisive_pairs()).unbind(-1)
    return float((scores[better, worse] > 0).double().mean())


def accuracy_ceiling(game: Game) -> float:
    """The best `pair_accuracy` of any reward: the best of all K! rankings of the answers."""
    orders = torch.tensor(list(permutations(range(len(game.answers)))), dtype=torch.float64)  # rewards by rank
    better, worse = torch.tensor(game.decisive_pairs()).unbind(-1)
    return float((orders[:, better] > orders[:, worse]).double().mean(-1).max())


def expected_nll(game: Game, scores: Tensor) -> float:
    """Expected negative log-likelihood of a fresh comparison, nats; pairs as frequent as in the training data."""
    weights = game.counts * game.probs
    return float(-(weights * F.logsigmoid(scores.double())).sum() / weights.sum())


def policy_metrics(policies: list[Tensor]) -> dict[str, Any]:
    """Metrics of one run: per game its policies (T + 1, K), the start first.

    worst_case_win_rate is the average iterate's, its mean over the games; by_size, start and last likewise.
    """
    cases = by_size(lambda i: worst_cases(GAMES[i].probs, policies[i]))

    def summary(name: str) -> dict[str, Any]:
        values = {size: case[name] for size, case in cases.items()}
        return {"worst_case_win_rate": mean(values.values()), "by_size": values}

    return {
        **summary("average"),
        "start": summary("start"),
        "last": summary("last"),
        "dominated_probability": by_size(lambda i: float(policies[i][-1, -1])),
        "other_probability": by_size(lambda i: float(1 - policies[i][-1].sum())),
    }


def learned_scores(measurements: dict[str, Any], kind: str) -> list[Tensor]:
    """Per game the scores (K, K) of the trained model, float64."""
    rows = measurements["games"]
    if kind == "gpm":
        return [torch.tensor(row["gpm_scores"], dtype=torch.float64) for row in rows]
    return [bt_scores(torch.tensor(row["bt_rewards"], dtype=torch.float64)) for row in rows]


def run_policies(measurements: dict[str, Any], kind: str) -> list[Tensor]:
    """Per game the policies (T + 1, K) of the run against the reward model `kind`, float64."""
    return [torch.tensor(row["policies"][kind], dtype=torch.float64) for row in measurements["games"]]


def compute_metrics(measurements: dict[str, Any], beta: float) -> dict[str, Any]:
    """What metrics.json holds, but for timings and memory."""
    metrics: dict[str, Any] = {}
    for kind in ("gpm", "bt"):
        scores = learned_scores(measurements, kind)
        metrics[kind] = {
            "accuracy": by_size(lambda i, s=scores: pair_accuracy(GAMES[i], s[i])),
            "nll": by_size(lambda i, s=scores: expected_nll(GAMES[i], s[i])),
        }
    metrics["bt"]["accuracy_ceiling"] = by_size(lambda i: accuracy_ceiling(GAMES[i]))
    best = [bt_scores(fit_bradley_terry(torch.tensor(row["wins"]))) for row in measurements["games"]]
    metrics["bt"]["nll_best"] = by_size(lambda i: expected_nll(GAMES[i], best[i]))
    metrics["truth"] = {"nll": by_size(lambda i: expected_nll(GAMES[i], GAMES[i].scores))}
    for kind in ("gpm", "bt"):
        metrics[f"gpo_{kind}"] = policy_metrics(run_policies(measurements, kind))
    steps = len(measurements["games"][0]["policies"]["gpm"]) - 1
    simulated = simulate(measurements, steps, beta)
    metrics["simulation"] = {f"gpo_{kind}": policy_metrics(simulated[kind]) for kind in ("gpm", "bt")}
    metrics["reward_actor_gap"] = measurements["reward_actor_gap"]
    metrics["goals"] = goals(metrics)
    return metrics


def goals(metrics: dict[str, Any]) -> dict[str, bool]:
    """Which of the quickstart's promises this run kept."""
    gpm, bt = metrics["gpo_gpm"], metrics["gpo_bt"]
    lead = gpm["worst_case_win_rate"] - bt["worst_case_win_rate"]
    dominated = [*gpm["dominated_probability"].values(), *bt["dominated_probability"].values()]
    return {
        "the GPM orders every pair": min(metrics["gpm"]["accuracy"].values()) >= GOALS["gpm_accuracy"],
        f"worst case against the GPM >= {GOALS['worst_case']:.2f}": gpm["worst_case_win_rate"] >= GOALS["worst_case"],
        f"lead over Bradley-Terry >= {GOALS['lead']:.2f}": lead >= GOALS["lead"],
        f"dominated answers < {GOALS['dominated']:.2f}": max(dominated) < GOALS["dominated"],
    }


def by_size(value: Callable[[int], Any]) -> dict[str, Any]:
    """{"3": value(0), "4": value(1), ...} over the games."""
    return {str(game.size): value(i) for i, game in enumerate(GAMES)}


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)
