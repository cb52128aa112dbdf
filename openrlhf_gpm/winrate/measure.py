"""All that is said of policies whose answers were judged: metrics.json, and a row for each prompt.

Notation: P policies, N prompts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.core import cyclic_share
from openrlhf_gpm.winrate.answers import Answers
from openrlhf_gpm.winrate.lengths import control_lengths
from openrlhf_gpm.winrate.matrix import log_odds, moments_by_prompt, play
from openrlhf_gpm.winrate.resampling import DRAWS, FEWEST, effective_prompts, middle, shares
from openrlhf_gpm.winrate.texts import AnswerFile
from openrlhf_gpm.winrate.words import mean_win_rates

TIE = 1e-6
"""Win rates that differ by less are equal: what is left of a tie after rounding."""


def measure(
    files: Sequence[AnswerFile], judged: Sequence[Answers], draws: int = DRAWS, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and the rows of the prompts, ready for JSON. judged: the answers of `files` to their common prompts.

    Metrics: policies (names), prompts (N), answers (P, to these prompts), mean_length (P, characters), what `play`
    finds, n_eff (P, P; how many prompts with one answer each these are worth, see `effective_prompts`; None below 10
    prompts, an entry where unknown), length_controlled (win_rates, ci95, slope; an entry is None where one policy's
    answers are longer to every prompt), judge_cyclic_share (mean over prompts), by_subset (of each named subset, in
    order of name: prompts, and what `play` finds on them), warnings.

    A row: prompt, subset (None without one), best (the policy with the largest mean win rate against the others, None
    for a tie), win_rate (that one), win_rates (P, P), lengths (P), cyclic_share.
    """
    keys = list(judged[0].by_prompt)
    by_prompt, inside = moments_by_prompt(judged)
    lengths = torch.tensor([[_mean_length(file, key) for file in files] for key in keys], dtype=torch.float64)
    names = [file.policy for file in files]
    controlled, warnings = _controlled(names, by_prompt, lengths, draws, seed)
    if len(keys) < FEWEST:
        warnings.append(f"{len(keys)} common prompts are too few for intervals: give at least {FEWEST}")
    subsets = [_subset(files, key) for key in keys]
    metrics = {
        "policies": names,
        "prompts": len(keys),
        "answers": [sum(len(file.by_prompt[key].texts) for key in keys) for file in files],
        "mean_length": lengths.mean(0).tolist(),
        **play(names, by_prompt, draws, seed),
        "n_eff": _or_none(effective_prompts(by_prompt, inside).tolist()) if len(keys) >= FEWEST else None,
        "length_controlled": controlled,
        "judge_cyclic_share": sum(judged[0].by_prompt[key].cyclic_share for key in keys) / len(keys),
        "by_subset": _by_subset(names, by_prompt, subsets, draws, seed),
        "warnings": warnings,
    }
    cyclic = cyclic_share(log_odds(by_prompt)).tolist()
    prompts = [files[0].by_prompt[key].prompt for key in keys]
    columns = zip(prompts, subsets, by_prompt.tolist(), lengths.tolist(), cyclic, strict=True)
    return metrics, [_row(names, *each) for each in columns]


def _mean_length(file: AnswerFile, key: str) -> float:
    texts = file.by_prompt[key].texts
    return sum(map(len, texts)) / len(texts)


def _subset(files: Sequence[AnswerFile], key: str) -> str | None:
    """What the first file that knows says."""
    return next((subset for file in files if (subset := file.by_prompt[key].subset)), None)


def _by_subset(
    names: Sequence[str], by_prompt: Tensor, subsets: Sequence[str | None], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    rows: dict[str, list[int]] = {}
    for i, subset in enumerate(subsets):
        if subset:
            rows.setdefault(subset, []).append(i)
    return {
        subset: {"prompts": len(at)} | play(names, by_prompt[at], draws, seed) for subset, at in sorted(rows.items())
    }


def _controlled(
    names: Sequence[str], by_prompt: Tensor, lengths: Tensor, draws: int, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """length_controlled, and what there is to say about it."""
    enough = len(by_prompt) >= FEWEST and draws
    found = control_lengths(by_prompt, lengths, shares(len(by_prompt), draws, seed) if enough else ())
    bounds = middle(found.draws) if enough else None
    warnings = [
        f"{names[i]} and {names[j]} are not compared at equal length: one's answers are longer to every prompt"
        for i, j in torch.triu(found.win_rates.isnan()).nonzero().tolist()
    ]
    rates, slope = _or_none(found.win_rates.tolist()), _or_none(found.slopes.tolist())
    ci95 = None if bounds is None else [[_known(pair) for pair in row] for row in bounds.tolist()]
    return {"win_rates": rates, "ci95": ci95, "slope": slope}, warnings


def _or_none(matrix: list[list[float]]) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in matrix]


def _known(pair: list[float]) -> list[float] | None:
    return None if pair[0] != pair[0] else pair


def _row(
    names: Sequence[str],
    prompt: Any,
    subset: str | None,
    rates: list[list[float]],
    lengths: list[float],
    cyclic: float,
) -> dict[str, Any]:
    means = mean_win_rates(rates)
    highest = max(means)
    winners = [name for name, mean in zip(names, means, strict=True) if mean > highest - TIE]
    return {
        "prompt": prompt,
        "subset": subset,
        "best": winners[0] if len(winners) == 1 else None,
        "win_rate": highest,
        "win_rates": rates,
        "lengths": lengths,
        "cyclic_share": cyclic,
    }
