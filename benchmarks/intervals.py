"""How often the intervals of `openrlhf-gpm eval` hold the truth: 30, 60 and 200 prompts of 1 to 10 dependent pairs.

Comparisons of one prompt share an error of the model, so they are worth fewer than their number. The truth is that of
a very large sample. Prints the coverage of each metric, and of the difference of two models, per design.
"""

import argparse

import numpy as np

from openrlhf_gpm.evaluation.intervals import difference_interval
from openrlhf_gpm.evaluation.metrics import METRICS, Comparisons, intervals, prompt_sums

PROMPTS = (30, 60, 200)
DESIGNS = {  # slope and shift of the true log-odds over the scores, and the error that a prompt's pairs share
    "calibrated": (1.0, 0.0, 0.0),
    "overconfident": (0.4, 0.0, 0.0),
    "dependent": (0.6, 0.0, 1.0),
    "accurate": (1.0, 2.0, 0.5),
}
COLUMNS = (*METRICS, "difference")
LARGE = 200_000
FLOOR = 0.93
DRAWS = 500


def draw(rng: np.random.Generator, prompts: int, design: str) -> tuple[Comparisons, Comparisons]:
    """Comparisons of two models on the same pairs; the second sees the first one's scores with noise."""
    slope, shift, shared = DESIGNS[design]
    of = np.repeat(np.arange(prompts), rng.integers(1, 11, prompts))
    scores = 1.5 * rng.normal(size=len(of)) + 0.5 * rng.normal(size=prompts)[of]
    truth = slope * scores + shift * np.sign(scores) + shared * rng.normal(size=prompts)[of]
    labels = (rng.random(len(of)) < 1 / (1 + np.exp(-truth))).astype(float)
    other = scores + rng.normal(size=len(of)) + 0.5 * rng.normal(size=prompts)[of]
    first, second = (Comparisons(s, labels, of, [None] * len(of)) for s in (scores, other))
    return first, second


def ratios(sums: np.ndarray) -> np.ndarray:
    """The four metrics, from sums."""
    total = sums.sum(0)
    gap = np.abs(total[5:]).sum()
    return np.array([total[0] / total[1], total[2] / total[4], total[3] / total[4], gap / total[4]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated evaluations per line (default: 1000)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    lowest = 1.0
    print(f"{'design':15}{'prompts':>8}  " + "".join(f"{name:>12}" for name in COLUMNS))
    for design in DESIGNS:
        first, second = draw(rng, LARGE, design)
        sums, others = prompt_sums(first), prompt_sums(second)
        truth = np.append(ratios(sums), (sums[:, 0] - others[:, 0]).sum() / sums[:, 1].sum())
        for prompts in PROMPTS:
            hits = np.zeros(len(COLUMNS))
            for run in range(args.runs):
                first, second = draw(rng, prompts, design)
                sums, others = prompt_sums(first), prompt_sums(second)
                found = [*intervals(sums, DRAWS, seed=run).values()]
                found.append(difference_interval(sums[:, 0] - others[:, 0], sums[:, 1]))
                hits += [low - 1e-12 <= value <= high + 1e-12 for (low, high), value in zip(found, truth, strict=True)]
            coverage = hits / args.runs
            lowest = min(lowest, coverage.min())
            print(f"{design:15}{prompts:8}  " + "".join(f"{value:12.3f}" for value in coverage), flush=True)
    print(f"lowest coverage {lowest:.3f} at nominal 0.95; at least {FLOOR} is asked for")
    return int(lowest < FLOOR)


if __name__ == "__main__":
    raise SystemExit(main())
