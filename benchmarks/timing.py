"""Ratios of two ways to do one thing, measured side by side: ABBA order, median of pairs, bootstrap interval."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PAIRS = 9


@dataclass(frozen=True)
class Ratio:
    """Seconds of the slow way over seconds of the fast way; `low` and `high` bound it with 95 % confidence."""

    median: float
    low: float
    high: float
    slow_seconds: float
    fast_seconds: float


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(slow: Callable[[], object], fast: Callable[[], object], pairs: int = PAIRS) -> Ratio:
    """Time `slow` and `fast` in the order ABBA ABBA ..., after one run of each that does not count."""
    slow(), fast()
    slow_times, fast_times = [], []
    for pair in range(pairs):
        for run, times in ((slow, slow_times), (fast, fast_times))[:: 1 if pair % 2 == 0 else -1]:
            times.append(seconds(run))
    return summarise(slow_times, fast_times)


def summarise(slow_times: list[float], fast_times: list[float]) -> Ratio:
    """The ratio of times taken in turns: median of the pairs, with its bootstrap interval."""
    pairs = len(slow_times)
    ratios = torch.tensor(slow_times) / torch.tensor(fast_times)
    resampled = (
        ratios[torch.randint(pairs, (2000, pairs), generator=torch.Generator().manual_seed(0))].median(1).values
    )
    low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Ratio(ratios.median().item(), low, high, statistics.median(slow_times), statistics.median(fast_times))
