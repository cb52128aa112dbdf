"""What `openrlhf-gpm eval` does, callable: from models and data to metrics.json, report.md and plots."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from openrlhf_gpm.evaluation import metrics, report
from openrlhf_gpm.evaluation.cycles import SMALLEST, cyclic_metrics
from openrlhf_gpm.evaluation.dataset import (
    Dataset,
    Scores,
    comparisons,
    outcomes,
    outcomes_by_subset,
    rewardbench2_items,
)
from openrlhf_gpm.evaluation.groups import group_metrics
from openrlhf_gpm.evaluation.judges import LongerScores
from openrlhf_gpm.evaluation.rewardbench import rewardbench, rewardbench2
from openrlhf_gpm.files import read_object, write

MIN_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the metrics; none of them changes a score."""

    bins: int = metrics.BINS
    """Equal-width bins of [1/2, 1] for the calibration error."""

    bootstrap: int = metrics.DRAWS
    """Bootstrap samples of prompts behind the 95 % intervals; 0 for no intervals."""

    seed: int = 0

    group_score: str = "mean_score"
    """RewardBench 2: what ranks a response in its group, "mean_score" (log-odds) or "win_rate" (probability)."""

    plots: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= metrics.MAX_BINS:
            raise ValueError(f"--bins must be from 1 to {metrics.MAX_BINS}, got {self.bins}")
        if self.bootstrap != 0 and self.bootstrap < MIN_DRAWS:
            raise ValueError(
                f"--bootstrap must be at least {MIN_DRAWS}, for the ends of an interval, or 0 to leave intervals out; "
                f"got {self.bootstrap}"
            )
        if self.seed < 0:
            raise ValueError(f"--seed must be >= 0, got {self.seed}")
        if self.group_score not in ("mean_score", "win_rate"):
            raise ValueError(f"--group_score must be 'mean_score' or 'win_rate', got {self.group_score!r}")


def evaluate(datasets: Sequence[Dataset], scores: Sequence[Scores], settings: Settings) -> dict[str, Any]:
    """All metrics of one model: `scores[d][g]` (K, K) of group g of dataset d -> a dict ready for JSON.

    Keys: those of `pair_metrics` over all data together; `by_data`, the same per dataset if there are several; and
    `rewardbench`, `rewardbench2`, `cyclic` and `groups` if the data has them.
    """
    result = _metrics(datasets, scores, settings)
    if len(datasets) > 1:
        parts = zip(datasets, scores, strict=True)
        result["by_data"] = {data.name: _metrics([data], [part], settings) for data, part in parts}
    return result


def _metrics(datasets: Sequence[Dataset], scores: Sequence[Scores], settings: Settings) -> dict[str, Any]:
    table = comparisons(datasets, scores)
    result = metrics.pair_metrics(table, settings.bins, settings.bootstrap, settings.seed)
    items, not_items = rewardbench2_items(datasets, scores, settings.group_score == "win_rate")
    parts = {
        "rewardbench": rewardbench(result["by_subset"]),
        "rewardbench2": rewardbench2(items),
        "cyclic": cyclic_metrics(outcomes(datasets, scores, SMALLEST)),
        "groups": group_metrics(chain.from_iterable(scores)),
    }
    if parts["cyclic"]:
        of_subsets = outcomes_by_subset(datasets, scores, SMALLEST)
        found = {name: cyclic_metrics(groups) for name, groups in of_subsets.items()}
        parts["cyclic"]["by_subset"] = {name: row for name, row in found.items() if row}
    if parts["rewardbench2"]:
        parts["rewardbench2"]["not_items"] = not_items
    return result | {name: part for name, part in parts.items() if part}


def longer_wins(datasets: Sequence[Dataset]) -> list[Scores]:
    """The scores of the length baseline."""
    return [LongerScores(data.groups) for data in datasets]


def compare(datasets: Sequence[Dataset], scores: dict[str, list[Scores]], settings: Settings) -> list[dict[str, Any]]:
    """Accuracy of each model minus that of each later one, paired by prompt."""
    tables = {name: comparisons(datasets, of_model) for name, of_model in scores.items()}
    names = list(tables)
    return [
        {"a": a, "b": b, **metrics.accuracy_difference(tables[a], tables[b], settings.bootstrap)}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]


def run(
    models: Sequence[str],
    datasets: Sequence[Dataset],
    score: Callable[[str, Dataset, Path], Scores],
    output: Path,
    settings: Settings,
) -> dict[str, dict[str, Any]]:
    """Score, measure and write. Returns the metrics by model.

    models: names, which also name the folders. score: (model name, dataset, folder for its files) -> scores of its
    groups; called model by model. One model: OUTPUT/metrics.json, report.md, plots. Several: one folder per model with
    its metrics.json and plots, and OUTPUT/report.md, comparison.json and plots that show all.
    """
    _remove_earlier(output, models)
    all_scores: dict[str, list[Scores]] = {}
    results: dict[str, dict[str, Any]] = {}
    baseline = evaluate(datasets, longer_wins(datasets), settings)
    for name in models:
        folder = output / name if len(models) > 1 else output
        folder.mkdir(parents=True, exist_ok=True)
        all_scores[name] = [score(name, data, folder) for data in datasets]
        described = {"model": name, "data": [_describe(data) for data in datasets]}
        read = [{"name": data.name, **data.tallies[name].to_dict()} for data in datasets if name in data.tallies]
        beside: dict[str, Any] = {"read": read} if read else {}
        beside |= {"baseline": {"longer_wins": _accuracies(baseline)}, "settings": vars(settings)}
        results[name] = {**described, **evaluate(datasets, all_scores[name], settings), **beside}
        _write_json(folder / "metrics.json", results[name])
        if settings.plots and len(models) > 1:
            _plots(folder, {name: results[name]}, baseline)
    differences = compare(datasets, all_scores, settings) if results[models[0]]["pairs"] else []
    if len(models) > 1:
        short = {name: _short(result) for name, result in results.items()}
        _write_json(output / "comparison.json", {"models": short, "accuracy_differences": differences})
    pictures = _plots(output, results, baseline) if settings.plots else []
    write(output / "report.md", report.markdown(results, baseline, differences, pictures))
    return results


def _remove_earlier(output: Path, models: Sequence[str]) -> None:
    """Remove what an earlier run wrote that this one will not replace: results of other models."""
    comparison = output / "comparison.json"
    if comparison.exists():
        earlier = read_object(comparison, "delete it").get("models", {})
        for name in set(earlier) - set(models if len(models) > 1 else ()):
            folder = output / name
            if Path(name).name == name and (folder / "metrics.json").exists():
                shutil.rmtree(folder)
        comparison.unlink()
    if len(models) > 1 and (output / "metrics.json").exists():  # of one model alone
        (output / "metrics.json").unlink()
        shutil.rmtree(output / "scores", ignore_errors=True)


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """A model's metrics, without the parts that only its own metrics.json needs."""
    kept = {name: value for name, value in result.items() if name not in ("calibration", "settings", "baseline")}
    if "groups" in kept:
        kept["groups"] = {name: value for name, value in kept["groups"].items() if name != "shares"}
    if "by_data" in kept:
        kept["by_data"] = {name: _short(value) for name, value in kept["by_data"].items()}
    return kept


def _accuracies(result: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are meaningful for scores of -1, 0 and 1."""
    names = ("accuracy", "ties", "rewardbench", "rewardbench2", "cyclic")
    kept: dict[str, Any] = {name: result[name] for name in names if name in result}
    kept["ci95"] = {name: value for name, value in result["ci95"].items() if name == "accuracy"}
    parts = {key: result[key] for key in ("by_subset", "by_data") if key in result}
    return kept | {key: {name: _accuracies(row) for name, row in part.items()} for key, part in parts.items()}


def _describe(data: Dataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "source": data.source,
        "rows": len(data.rows),
        "groups": len(data.groups),
        "skipped": data.skipped,
    }


def _write_json(file: Path, content: Any) -> None:
    write(file, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plots(folder: Path, results: dict[str, dict[str, Any]], baseline: dict[str, Any]) -> list[str]:
    from openrlhf_gpm.evaluation import plots  # matplotlib, an extra

    return plots.draw_all(folder, results, baseline)
