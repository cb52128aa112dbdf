"""95 % intervals of metrics over prompts, whose comparisons depend on each other.

Notation: P prompts, B bootstrap draws of P prompts with replacement, M columns of sums. A metric is the ratio of a sum
over prompts to another, x / d. `benchmarks/intervals.py` prints how often the intervals hold the truth.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = list[float]

MIN_PROMPTS = 10
"""With fewer prompts there is no interval: their spread says too little about other prompts."""

Z = 1.959963984540054  # 97.5 % of a normal distribution
LEVELS = (0.025, 0.975)
SURE = 2.0  # a bin's gap has a sign if it is so many times its standard deviation
BLOCK = 4_000_000  # bootstrap counts in memory at once: 32 MB


def bootstrap(sums: Array, draws: int, seed: int) -> Array:
    """Sums over B samples of P prompts with replacement: (P, M) -> (B, M). Equal seeds draw the same prompts."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    block = max(1, BLOCK // size)
    counts = (rng.multinomial(size, np.full(size, 1 / size), min(block, draws - i)) for i in range(0, draws, block))
    return np.concatenate([count @ sums for count in counts])


def share_interval(x: Array, d: Array) -> Interval | None:
    """Interval of a share, such as accuracy: Wilson's, for as many comparisons as the prompts are worth.

    x, d: (P,) of each prompt, counts of right and of all. Right on all of P prompts is not certainty: the interval
    then is that of P comparisons. None for fewer than MIN_PROMPTS prompts.
    """
    x, d = x[d > 0], d[d > 0]
    if len(d) < MIN_PROMPTS:
        return None
    share, error, df = _ratio(x, d)
    n = share * (1 - share) / error**2 if error > 0 and 0 < share < 1 else df + 1
    n, k = min(n, d.sum()), t_quantile(df) ** 2
    center = (share + k / (2 * n)) / (1 + k / n)
    half = math.sqrt(k * (share * (1 - share) / n + k / (4 * n * n))) / (1 + k / n)
    return [max(0.0, min(center - half, share)), min(1.0, max(center + half, share))]


def mean_interval(x: Array, d: Array, draws: int, seed: int, top: float = math.inf) -> Interval | None:
    """Interval of a mean of values in [0, top], such as NLL: the bootstrap of its t statistic, which follows skewness.

    x, d: (P,) of each prompt, the sum of its values and their number. None for fewer than MIN_PROMPTS prompts.
    """
    x, d = x[d > 0], d[d > 0]
    if len(d) < MIN_PROMPTS:
        return None
    mean, error, _ = _ratio(x, d)
    sx, sd, sxx, sxd, sdd = bootstrap(np.stack([x, d, x * x, x * d, d * d], axis=1), draws, seed).T
    means = sx / sd
    errors = np.sqrt(np.maximum(sxx - 2 * means * sxd + means**2 * sdd, 0) * len(d) / (len(d) - 1)) / sd
    varied = errors > 1e-12 * (1 + mean)  # a draw of one prompt alone has no spread
    if not varied.any():
        return [mean, mean]
    low, high = np.quantile((means - mean)[varied] / errors[varied], LEVELS)
    error *= _for_few(d)
    return [max(0.0, mean - max(high, 0) * error), min(top, mean - min(low, 0) * error)]


def gap_interval(gaps: Array, d: Array, draws: int, seed: int) -> Interval | None:
    """Interval of the expected calibration error, the sum over bins of |gap|.

    gaps: (P, bins) of each prompt, confidence minus outcome summed per bin; d: (P,) its comparisons. Noise makes every
    |gap| larger, so the point is too high where the model is calibrated. The lower end allows for that: bins whose
    gap may have either sign count all of their noise, the others that along their sign.
    """
    gaps, d = gaps[d > 0], d[d > 0]
    if len(d) < MIN_PROMPTS:
        return None
    gap = gaps.sum(0) / d.sum()
    drawn = bootstrap(np.column_stack([gaps, d]), draws, seed)
    noise = drawn[:, :-1] / drawn[:, -1:] - gap  # (B, bins)
    along = noise * np.sign(gap)
    sure = np.abs(gap) > SURE * noise.std(0)
    below = along[:, sure].sum(1) + np.abs(noise[:, ~sure]).sum(1)
    wider = _for_few(d)
    point = float(np.abs(gap).sum())
    low, high = np.quantile(below, LEVELS[1]) * wider, np.quantile(along.sum(1), LEVELS[0]) * wider
    return [max(0.0, point - max(float(low), 0)), min(1.0, point - min(float(high), 0))]


def difference_interval(x: Array, d: Array) -> Interval | None:
    """Interval of the difference of two shares on the same comparisons, paired: in [-1, 1].

    x: (P,) of each prompt, how many more the first has right; d: (P,) its comparisons. The two halves of a prompt, one
    won by each, are added (as Agresti and Min 2005 do), so that a difference of 0 or 1 everywhere is not certainty.
    None for fewer than MIN_PROMPTS prompts.
    """
    x, d = x[d > 0], d[d > 0]
    if len(d) < MIN_PROMPTS:
        return None
    point, size = float(x.sum() / d.sum()), d.mean()
    half = size / math.sqrt(2)
    middle, error, df = _ratio(np.append(x, [half, -half]), np.append(d, [size, size]))
    half = t_quantile(df) * error
    return [max(-1.0, min(middle - half, point)), min(1.0, max(middle + half, point))]


def t_quantile(df: float) -> float:
    """The 97.5 % quantile of Student's t for df >= 5, to 0.003 (Cornish and Fisher's expansion)."""
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return sum(term / df**power for power, term in enumerate(terms))


def _ratio(x: Array, d: Array) -> tuple[float, float, float]:
    """x / d over all prompts, its standard error by the spread between prompts, and the degrees of freedom."""
    total = d.sum()
    ratio = float(x.sum() / total)
    spread = float(((x - ratio * d) ** 2).sum())
    return ratio, math.sqrt(spread * len(d) / (len(d) - 1)) / total, max(5.0, _worth(d) - 1)


def _for_few(d: Array) -> float:
    """What the noise of a bootstrap lacks where there are few prompts, as a factor."""
    return math.sqrt(len(d) / (len(d) - 1)) * t_quantile(max(5.0, _worth(d) - 1)) / Z


def _worth(d: Array) -> float:
    """How many prompts of equal size P prompts of sizes d are worth: P, or fewer."""
    return float(d.sum() ** 2 / (d**2).sum())
