"""The tables that reproduce.py writes: metrics pooled over folds, with 95 % intervals over prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from folds import OUT, Training

from openrlhf_gpm.evaluation.dataset import read_dataset
from openrlhf_gpm.evaluation.run import Settings, evaluate, longer_wins
from openrlhf_gpm.evaluation.run import compare as compare_models
from openrlhf_gpm.files import temporary, write
from openrlhf_gpm.json_lines import JsonLines
from openrlhf_gpm.scoring.store import StoredScores

Row = dict[str, Any]
SETTINGS = Settings(plots=False)
TOLERANCE = 0.01
"""Of NLL and accuracy on another machine. Where the NLL is ln 2, rounding decides the accuracy, which is left out."""


def scores_of(file: Path) -> StoredScores:
    """The scores (K, K) of each group that `openrlhf-gpm eval` left in a file."""
    return StoredScores(JsonLines(open(file, "rb")))


def pooled(label: str, parts: Sequence[tuple[Training, Path]]) -> Row:
    """One row: the metrics of several folds together, each judged by the model that has not seen it."""
    datasets = [read_dataset(str(held_out), name=run.name) for run, held_out in parts]
    metrics = evaluate(datasets, [scores_of(run.scores(held_out)) for run, held_out in parts], SETTINGS)
    return {
        "row": label,
        "folds": len(parts),
        **summary(metrics, sum(len(data.groups) for data in datasets)),
        **_trainings([run for run, _ in parts]),
    }


def _trainings(runs: Sequence[Training]) -> Row:
    """How long they took, when, and the commands."""
    records = [run.record or {} for run in runs]
    return {
        "seconds": sum(record.get("seconds", 0) for record in records),
        "date": max((record["date"] for record in records if "date" in record), default=None),
        "commands": [record["command"] for record in records if "command" in record],
    }


def changed(label: str, run: Training, first: Training, held_out: Path) -> Row:
    """One row: the metrics of a training, and its accuracy minus that of `first`, paired by prompt."""
    scores = {each.name: [scores_of(each.scores(held_out))] for each in (run, first)}
    (difference,) = compare_models([read_dataset(str(held_out))], scores, SETTINGS)
    change = {"change": difference["difference"], "change_ci95": difference["ci95"]}
    return {**pooled(label, [(run, held_out)]), **change}


def beside(label: str, runs: Sequence[Training], file: Path) -> Row:
    """One row: the accuracies of two models and of "longer wins" on one file, and the models' paired difference."""
    data = read_dataset(str(file))
    scores = {run.name: [scores_of(run.scores(file))] for run in runs}
    scores["longer"] = longer_wins([data])
    metrics = {name: evaluate([data], of_model, SETTINGS) for name, of_model in scores.items()}
    first, second, longer = metrics.values()
    (difference, *_) = compare_models([data], scores, SETTINGS)
    return {
        "row": label,
        "prompts": len(data.groups),
        "comparisons": first["pairs"],
        "accuracy": [each["accuracy"] for each in (first, second, longer)],
        "accuracy_ci95": [each["ci95"].get("accuracy") for each in (first, second, longer)],
        "difference": difference["difference"],
        "difference_ci95": difference["ci95"],
        **_trainings(runs),
    }


def summary(metrics: dict[str, Any], prompts: int) -> Row:
    """What a row says of the metrics of `evaluate`."""
    cyclic = metrics.get("cyclic") or {}
    return {
        "prompts": prompts,
        "comparisons": metrics["pairs"],
        "bound": cyclic.get("ranking_bound"),
        "accuracy": metrics["accuracy"],
        "accuracy_ci95": metrics["ci95"].get("accuracy"),
        "nll": metrics["nll"],
        "nll_ci95": metrics["ci95"].get("nll"),
        "ece": metrics["ece"],
        "ece_ci95": metrics["ci95"].get("ece"),
        "cyclic_share": metrics["groups"]["cyclic_share"]["mean"],
    }


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


def _figure(name: str) -> Callable[[Row], str]:
    return lambda row: _number(row[name], row.get(f"{name}_ci95"))


def _accuracy_of(model: int) -> Callable[[Row], str]:
    return lambda row: _number(row["accuracy"][model], row["accuracy_ci95"][model])


_ROW = {"row": _text("row")}
_JUDGED = {"accuracy [95 %]": _figure("accuracy"), "NLL [95 %]": _figure("nll"), "ECE [95 %]": _figure("ece")}
_MINUTES = {"minutes": lambda row: f"{row['seconds'] / 60:.0f}"}
POOLED = {
    **_ROW,
    "folds": _text("folds"),
    "prompts": _text("prompts"),
    "bound": _figure("bound"),
    **_JUDGED,
    "cyclic share": _figure("cyclic_share"),
    **_MINUTES,
}
CHANGED = {**_ROW, **_JUDGED, "difference [95 %]": _figure("change"), **_MINUTES}
BESIDE = {
    **_ROW,
    "prompts": _text("prompts"),
    "comparisons": _text("comparisons"),
    **{f"{name} [95 %]": _accuracy_of(i) for i, name in enumerate(("GPM", "Bradley-Terry", "longer wins"))},
    "GPM - BT [95 %]": _figure("difference"),
}
"""The columns of the three kinds of table: title -> the cell of a row."""


def write_table(name: str, rows: Sequence[Row]) -> None:
    """OUT/tables/NAME.json and NAME.md; the table also goes to the terminal."""
    folder = OUT / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"{name}.json", json.dumps(list(rows), indent=1) + "\n")
    write(folder / f"{name}.md", markdown(rows))
    print(markdown(rows), end="", flush=True)


def markdown(rows: Sequence[Row]) -> str:
    """The table as docs/results.md shows it."""
    columns = BESIDE if "difference" in rows[0] else CHANGED if "change" in rows[0] else POOLED
    if not any(row.get("commands") for row in rows):
        columns = {name: cell for name, cell in columns.items() if name not in _MINUTES}  # none was trained
    lines = [f"| {' | '.join(columns)} |", f"|---{'|---:' * (len(columns) - 1)}|"]
    lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]
    return "\n".join(lines) + "\n"


def draw_curve(lines: dict[str, Sequence[Row]], sizes: Sequence[float], path: Path) -> None:
    """Accuracy over the number of training prompts with its intervals, and the bound.

    lines: name -> its rows, one for each of `sizes`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    looks = (("#1f6cbf", 0.99), ("#c05c1f", 1.01))  # a little apart, so that no interval hides another
    for (name, rows), (colour, shift) in zip(lines.items(), looks, strict=True):
        points = [row["accuracy"] for row in rows]
        intervals = [row["accuracy_ci95"] or [row["accuracy"]] * 2 for row in rows]  # none of too few prompts
        ends = [[abs(ends[side] - point) for ends, point in zip(intervals, points, strict=True)] for side in (0, 1)]
        axes.errorbar([shift * size for size in sizes], points, ends, label=name, color=colour, marker="o", capsize=3)
    axes.axhline(rows[0]["bound"], color="#555555", linestyle="--", label="most that any ranking can get")
    axes.set(xscale="log", ylim=(0.5, 1), xlabel="training prompts", ylabel="accuracy on new prompts")
    axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    with temporary(path) as new:
        figure.savefig(new, format="png", dpi=150)
    plt.close(figure)


def compare(rows: Sequence[Row], published: Sequence[Row]) -> bool:
    """Print each row beside the published one of its name. Whether NLL and accuracy agree."""
    by_name = {row["row"]: row for row in published}
    same = True
    for row in rows:
        found = by_name[row["row"]]
        before, near = found["accuracy"], abs(row["nll"] - found["nll"]) <= TOLERANCE
        if abs(found["nll"] - math.log(2)) > TOLERANCE:
            near = near and abs(row["accuracy"] - before) <= TOLERANCE
        same &= near
        print(
            f"{row['row']}: {row['accuracy']:.3f}, published {before:.3f}{'' if near else ': NOT the same'}",
            flush=True,
        )
    return same


def _number(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
