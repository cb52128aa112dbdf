"""PNG plots of evaluation results: reliability, cyclic shares, accuracies side by side. Files appear when complete."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from openrlhf_gpm.evaluation.report import BASELINE
from openrlhf_gpm.files import write

COLORS = ("#0b62a4", "#d1582b", "#3a9a5b", "#b5487f", "#6f5bb0", "#e0912f")
GREY = "#8a8a8a"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
MAX_ROWS = 60  # in the accuracy plot; further subsets are in metrics.json only

Results = dict[str, dict[str, Any]]


def draw_all(folder: Path, results: Results, baseline: dict[str, Any]) -> list[str]:
    """Draw every plot that the results allow. Returns the names of the files written to `folder`."""
    paired = {name: result for name, result in results.items() if result["calibration"]}
    grouped = {name: result for name, result in results.items() if "groups" in result}
    wanted: list[tuple[str, Callable[[Results], Figure], Results]] = [
        ("reliability.png", reliability, paired),
        ("accuracy.png", lambda shown: accuracy(shown, baseline), paired),
        ("cyclic_share.png", cyclic_share, grouped),
    ]
    written = []
    for name, draw, shown in wanted:
        if shown:
            with mpl.rc_context(STYLE):
                buffer = io.BytesIO()
                draw(shown).savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
            write(folder / name, buffer.getvalue())
            written.append(name)
    return written


def reliability(results: Results) -> Figure:
    """How often the favoured response was preferred, by the model's confidence; below, the number of comparisons."""
    figure = Figure(figsize=(4.6, 5.0), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0.5, 1], [0.5, 1], color=GREY, lw=0.8, label="calibrated")
    lowest = 0.5
    for (name, result), color in zip(results.items(), _colors(results), strict=True):
        table, bins = result["calibration"], result["settings"]["bins"]
        x, y = [row["confidence"] for row in table], [row["outcome"] for row in table]
        most = max(row["count"] for row in table)
        top.plot(x, y, color=color, lw=1.2, label=f"{name}  (ECE {result['ece']:.3f})")
        top.scatter(x, y, [6 + 34 * row["count"] / most for row in table], color=color)  # larger: more comparisons
        counts = [0] * bins
        for row in table:
            counts[round((row["low"] - 0.5) * 2 * bins)] = row["count"]
        below.stairs(counts, [0.5 + i / (2 * bins) for i in range(bins + 1)], color=color, lw=1.4)
        lowest = min([lowest, *y])
    top.set(ylabel="favoured response preferred", xlim=(0.5, 1.005), ylim=(max(0.0, lowest - 0.05), 1.02))
    top.legend(fontsize=8, loc="best")
    below.set(xlabel="confidence, max(p, 1 - p)", ylabel="comparisons")
    below.set_ylim(bottom=0)
    return figure


def accuracy(results: Results, baseline: dict[str, Any]) -> Figure:
    """Accuracy with its 95 % interval, one row for all data, per file and per subset; one colour per model."""
    shown = {**results, BASELINE: baseline}
    rows = _accuracy_rows(shown)
    figure = Figure(figsize=(6.4, 1.2 + 0.14 * len(rows) * max(2, len(shown))), layout="constrained")
    axis = figure.subplots()
    for k, (name, color) in enumerate(zip(shown, [*_colors(results), GREY], strict=True)):
        shift = 0.6 * ((k + 0.5) / len(shown) - 0.5)
        for y, (_, of_model) in enumerate(rows):
            entry = of_model[name]
            if entry["accuracy"] is None:
                continue
            if ci := entry["ci95"].get("accuracy"):
                axis.plot(ci, [y + shift] * 2, color=color, lw=1.4, alpha=0.6, solid_capstyle="round")
            marker = "d" if name == BASELINE else "o"
            axis.plot(entry["accuracy"], y + shift, marker, color=color, ms=4.5, label=None if y else name)
    axis.axvline(0.5, color="#cccccc", lw=0.8, zorder=0)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("accuracy, with 95 % interval over prompts")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(shown)))
    return figure


def cyclic_share(results: Results) -> Figure:
    """Histogram over groups of the part of the scores that no scalar reward can express."""
    figure = Figure(figsize=(4.8, 3.0), layout="constrained")
    axis = figure.subplots()
    edges = [i / 25 for i in range(26)]
    for (name, result), color in zip(results.items(), _colors(results), strict=True):
        shares = result["groups"]["shares"]
        weights = [1 / len(shares)] * len(shares)
        label = f"{name}  (mean {result['groups']['cyclic_share']['mean']:.3f})"
        axis.hist(shares, edges, weights=weights, histtype="step", color=color, lw=1.6, label=label)
    axis.set(xlabel="cyclic share (0: a ranking says it all, 1: pure cycle)", ylabel="share of groups", xlim=(0, 1))
    axis.legend(fontsize=8)
    return figure


def _accuracy_rows(results: Results) -> list[tuple[str, Results]]:
    """(label, model -> metrics) from the whole to its parts."""
    first = next(iter(results.values()))
    parts = [(part, name) for part in ("by_data", "by_subset") for name in first.get(part, {})]
    rows = [(name, {model: result[part][name] for model, result in results.items()}) for part, name in parts]
    return [("all", results), *rows][:MAX_ROWS]


def _colors(results: Results) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(results))]
