"""Measurements -> metrics.json: accuracy and NLL of the reward models, worst-case win rates of the policies.

Notation: n the size of a cycle, K = n + 1 answers, T steps. Every key "3", "4", "5" is the size of a cycle.
"""

from collections.abc import Callable, Iterable
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from commands import KINDS, RUNS, Settings
from simulation import fit_bradley_terry, simulate
from torch import Tensor
from world import GAMES, Game

from openrlhf_gpm.core import bt_scores
from openrlhf_gpm.core.tabular import worst_cases

GOALS = {"gpm_accuracy": 1.0, "last": 0.43, "bt_last": 0.25, "average": 0.40, "simulation": 0.06, "dominated": 0.05}


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

    start, last and average: worst_case_win_rate, the mean over the games, and by_size.
    """
    cases = by_size(lambda i: worst_cases(GAMES[i].probs, policies[i]))

    def summary(name: str) -> dict[str, Any]:
        values = {size: case[name] for size, case in cases.items()}
        return {"worst_case_win_rate": mean(values.values()), "by_size": values}

    return {
        "start": summary("start"),
        "last": summary("last"),
        "average": summary("average"),
        "dominated_probability": by_size(lambda i: float(policies[i][-1, -1])),
        "other_probability": by_size(lambda i: float(1 - policies[i][-1].sum())),
    }


def learned_scores(measurements: dict[str, Any], kind: str) -> list[Tensor]:
    """Per game the scores (K, K) of the trained model, float64."""
    rows = measurements["games"]
    if kind == "gpm":
        return [torch.tensor(row["gpm_scores"], dtype=torch.float64) for row in rows]
    return [bt_scores(torch.tensor(row["bt_rewards"], dtype=torch.float64)) for row in rows]


def run_policies(measurements: dict[str, Any], run: str) -> list[Tensor]:
    """Per game the policies (T + 1, K) of a run, float64."""
    return [torch.tensor(row["policies"][run], dtype=torch.float64) for row in measurements["games"]]


def compute_metrics(measurements: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What metrics.json holds, but for timings and memory."""
    metrics: dict[str, Any] = {}
    for kind in KINDS:
        scores = learned_scores(measurements, kind)
        metrics[kind] = {
            "accuracy": by_size(lambda i, s=scores: pair_accuracy(GAMES[i], s[i])),
            "nll": by_size(lambda i, s=scores: expected_nll(GAMES[i], s[i])),
        }
    metrics["bt"]["accuracy_ceiling"] = by_size(lambda i: accuracy_ceiling(GAMES[i]))
    best = [bt_scores(fit_bradley_terry(torch.tensor(row["wins"]))) for row in measurements["games"]]
    metrics["bt"]["nll_best"] = by_size(lambda i: expected_nll(GAMES[i], best[i]))
    metrics["truth"] = {"nll": by_size(lambda i: expected_nll(GAMES[i], GAMES[i].scores))}
    simulated = simulate(measurements, settings)
    for run in RUNS:
        metrics[f"gpo_{run}"] = policy_metrics(run_policies(measurements, run))
    metrics["simulation"] = {f"gpo_{run}": policy_metrics(simulated[run]) for run in RUNS}
    metrics["reward_actor_gap"] = measurements["reward_actor_gap"]
    metrics["goals"] = goals(metrics)
    return metrics


def goals(metrics: dict[str, Any]) -> dict[str, bool]:
    """Which of the quickstart's promises this run kept."""

    def worst(run: str, name: str, source: dict[str, Any] = metrics) -> float:
        return float(source[f"gpo_{run}"][name]["worst_case_win_rate"])

    dominated = [p for run in RUNS for p in metrics[f"gpo_{run}"]["dominated_probability"].values()]
    names = [(run, name) for run in RUNS for name in ("last", "average")]
    off = max(abs(worst(*name) - worst(*name, metrics["simulation"])) for name in names)
    return {
        "the GPM orders every pair": min(metrics["gpm"]["accuracy"].values()) >= GOALS["gpm_accuracy"],
        f"worst case with the magnet, last >= {GOALS['last']:.2f}": worst("gpm_magnet", "last") >= GOALS["last"],
        f"without it, average >= {GOALS['average']:.2f}": worst("gpm", "average") >= GOALS["average"],
        f"against Bradley-Terry, last <= {GOALS['bt_last']:.2f}": worst("bt", "last") <= GOALS["bt_last"],
        f"within {GOALS['simulation']:.2f} of the exact simulation": off <= GOALS["simulation"],
        f"dominated answers < {GOALS['dominated']:.2f}": max(dominated) < GOALS["dominated"],
    }


def by_size(value: Callable[[int], Any]) -> dict[str, Any]:
    """{"3": value(0), "4": value(1), ...} over the games."""
    return {str(game.size): value(i) for i, game in enumerate(GAMES)}


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)
