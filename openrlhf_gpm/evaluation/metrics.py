"""Metrics of pair comparisons: accuracy, NLL, Brier, calibration, and their intervals over prompts.

Notation: N comparisons of P prompts. A score is the log-odds that the first response beats the second, a label is the
probability that it does. Every metric is a ratio of sums over comparisons, computed once per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gpm.evaluation.intervals import (
    MIN_PROMPTS,
    difference_interval,
    gap_interval,
    mean_interval,
    share_interval,
)

Array = NDArray[np.float64]

BINS = 10
DRAWS = 1000
METRICS = ("accuracy", "nll", "brier", "ece")
MAX_BINS = 1000


@dataclass(frozen=True)
class Comparisons:
    """N comparisons as columns."""

    scores: Array
    """(N,) log-odds of the first response over the second; NaN if the model has no answer."""

    labels: Array
    """(N,) in [0, 1], P(first beats second). 1/2: undecided, left out of accuracy."""

    prompts: NDArray[np.int64]
    """(N,) a number per prompt, the same for all its comparisons."""

    subsets: Sequence[str | None]
    """(N,) names, None for no subset."""

    def __len__(self) -> int:
        return len(self.scores)

    def by_subset(self) -> dict[str, "Comparisons"]:
        """The comparisons of each named subset, in order of name."""
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self.subsets):
            if name:
                rows.setdefault(name, []).append(i)
        return {
            name: Comparisons(self.scores[at], self.labels[at], self.prompts[at], [name] * len(at))
            for name, at in sorted(rows.items())
        }


def right(comparisons: Comparisons) -> NDArray[np.bool_]:
    """Whether the score is strictly on the label's side of 0: (N,) bool. A tie, NaN or infinity is on neither side."""
    scores, labels = comparisons.scores, comparisons.labels
    agrees = ((scores > 0) & (labels > 0.5)) | ((scores < 0) & (labels < 0.5))
    return agrees & np.isfinite(scores)


def pair_metrics(
    comparisons: Comparisons, bins: int = BINS, draws: int = DRAWS, seed: int = 0, by_subset: bool = True
) -> dict[str, Any]:
    """All metrics of N comparisons, ready for JSON; None is a mean over nothing.

    accuracy: share of the decided comparisons (label not 1/2) that are `right`.
    nll (nats) and brier: mean over the finite scores, against the label as a probability.
    ece: expected calibration error, see `calibration`.
    ci95: [low, high] of the four, see `intervals`.
    pairs, prompts, undecided (label 1/2), ties (decided, score 0), nan (score not finite): counts.
    by_subset: the same, without calibration, for each named subset in order of name.
    """
    sums = prompt_sums(comparisons, bins)
    undecided = comparisons.labels == 0.5
    result: dict[str, Any] = {
        **{name: _number(value) for name, value in zip(METRICS, _ratios(sums.sum(0, keepdims=True))[0], strict=True)},
        "pairs": len(comparisons),
        "prompts": len(sums),
        "undecided": int(undecided.sum()),
        "ties": int(((comparisons.scores == 0) & ~undecided).sum()),
        "nan": int((~np.isfinite(comparisons.scores)).sum()),
        "ci95": intervals(sums, draws, seed),
    }
    if by_subset:
        result["calibration"] = calibration(comparisons, bins)
        result["by_subset"] = {
            name: pair_metrics(part, bins, draws, seed, by_subset=False)
            for name, part in comparisons.by_subset().items()
        }
    return result


def calibration(comparisons: Comparisons, bins: int = BINS) -> list[dict[str, Any]]:
    """Reliability of the probabilities in equal-width bins of [1/2, 1]; empty bins are left out.

    The order of the two responses must not matter, so each comparison is seen from the side that the model favours.
    Its confidence is max(p, 1 - p), its outcome the label of that side (1/2 if p is exactly 1/2). Counting every
    comparison from both sides, in twice as many bins of [0, 1], gives the same error.

    Each bin: low, high, count, and the means of confidence and outcome. ECE is the mean over comparisons of the
    distance between the two, bin by bin.
    """
    confidence, outcome, bin_of = _favoured(comparisons, bins)
    edges = np.linspace(0.5, 1, bins + 1)
    table = []
    for i in range(bins):
        inside = bin_of == i
        if inside.any():
            means = {"confidence": float(confidence[inside].mean()), "outcome": float(outcome[inside].mean())}
            table.append({"low": edges[i].item(), "high": edges[i + 1].item(), "count": int(inside.sum()), **means})
    return table


def prompt_sums(comparisons: Comparisons, bins: int = BINS) -> Array:
    """Sums over the comparisons of each prompt: (P, 5 + bins), the input of `_ratios`.

    Columns: right, decided, NLL, squared error, finite; then, for each bin, confidence minus outcome.
    """
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"--bins must be from 1 to {MAX_BINS}, got {bins}")
    finite = np.isfinite(comparisons.scores)
    scores, labels = np.where(finite, comparisons.scores, 0.0), comparisons.labels
    columns = np.zeros((len(comparisons), 5 + bins))
    columns[:, 0] = right(comparisons)
    columns[:, 1] = labels != 0.5
    columns[:, 2] = np.where(finite, labels * np.logaddexp(0, -scores) + (1 - labels) * np.logaddexp(0, scores), 0)
    columns[:, 3] = np.where(finite, (sigmoid(scores) - labels) ** 2, 0)
    columns[:, 4] = finite
    confidence, outcome, bin_of = _favoured(comparisons, bins)
    columns[np.flatnonzero(finite), 5 + bin_of] = confidence - outcome
    prompts, row = np.unique(comparisons.prompts, return_inverse=True)
    sums = np.zeros((len(prompts), columns.shape[1]))
    np.add.at(sums, row, columns)
    return sums


def intervals(sums: Array, draws: int = DRAWS, seed: int = 0) -> dict[str, list[float] | None]:
    """95 % intervals of the metrics, from the sums of P prompts, by the methods of intervals.py.

    Empty with draws = 0 or fewer than MIN_PROMPTS prompts; None for a metric that fewer prompts have.
    """
    if not draws or len(sums) < MIN_PROMPTS:
        return {}
    right_, decided, nll, brier, finite = sums[:, :5].T
    return {
        "accuracy": share_interval(right_, decided),
        "nll": mean_interval(nll, finite, draws, seed),
        "brier": mean_interval(brier, finite, draws, seed, top=1.0),
        "ece": gap_interval(sums[:, 5:], finite, draws, seed),
    }


def accuracy_difference(a: Comparisons, b: Comparisons, draws: int = DRAWS) -> dict[str, Any]:
    """Accuracy of a minus accuracy of b on the same N comparisons, with a paired interval over prompts.

    Returns difference, ci95 and separated (whether the interval excludes 0); the last two are None with draws = 0 or
    fewer than MIN_PROMPTS prompts. Raises ValueError if the comparisons are not the same.
    """
    if len(a) != len(b) or not (np.array_equal(a.prompts, b.prompts) and np.array_equal(a.labels, b.labels)):
        raise ValueError("two models can be compared on the same comparisons only: evaluate them in one run")
    sums_a, sums_b = prompt_sums(a, 1)[:, :2], prompt_sums(b, 1)[:, :2]
    ahead, decided = sums_a[:, 0] - sums_b[:, 0], sums_a[:, 1]
    total = decided.sum()
    difference = None if total == 0 else float(ahead.sum() / total)
    low_high = difference_interval(ahead, decided) if draws else None
    separated = None if low_high is None else bool(low_high[0] > 0 or low_high[1] < 0)
    return {"difference": difference, "ci95": low_high, "separated": separated}


def sigmoid(scores: Array) -> Array:
    """Probabilities of log-odds, without overflow."""
    return np.exp(-np.logaddexp(0, -scores))


def _favoured(comparisons: Comparisons, bins: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Confidence, outcome and bin of the finite comparisons, seen from the side that the model favours."""
    finite = np.isfinite(comparisons.scores)
    scores, labels = comparisons.scores[finite], comparisons.labels[finite]
    confidence = sigmoid(np.abs(scores))
    outcome = np.where(scores == 0, 0.5, np.where(scores > 0, labels, 1 - labels))
    return confidence, outcome, np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)


def _ratios(sums: Array) -> Array:
    """Accuracy, NLL, Brier and ECE from sums (..., 5 + bins) -> (..., 4); NaN for a mean over nothing."""
    right_, decided, nll, brier, finite = np.moveaxis(sums[..., :5], -1, 0)
    gap = np.abs(sums[..., 5:]).sum(-1)
    return np.stack([_divide(right_, decided), *(_divide(x, finite) for x in (nll, brier, gap))], axis=-1)


def _divide(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator != 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
