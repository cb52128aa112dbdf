"""Stage 7: metrics, plots and the report from the measurements.

python examples/quickstart/report.py DIR     # reads DIR/measurements.json and DIR/stamps
"""

import json
import sys
from pathlib import Path
from typing import Any

import plots
import polygons
from commands import KINDS, RUNS, Settings
from metrics import compute_metrics, learned_scores, run_policies
from simulation import simulate
from stages import write_atomically

SIZES = ("3", "4", "5")
WHO = {"gpm_magnet": "GPM, magnet", "gpm": "GPM", "bt": "BT"}
FIGURES = {
    "worst_case.png": "Win rate against the best opponent, over the steps. Thick: the policy itself; thin: the "
    "average policy so far; dashed: the policy of the exact simulation.",
    "simplex.png": "The path of the policy among the answers of the cycle (the dominated answer left out).",
    "policy.png": "Probability of each answer over the steps.",
    "scores.png": "Probability that the row's answer beats the column's: the truth, the GPM, Bradley-Terry.",
    "embeddings.png": "The GPM's embeddings, as in Figure 3 of the paper: the plane in which the cycle turns (top) "
    "and the plane in which the dominated answer falls behind (bottom).",
}


def read_stamps(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of the stages before this one, in the order in which they ended."""
    paths = sorted((folder / "stamps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.stem != "report"}


def rows(metrics: dict[str, Any]) -> list[tuple[str, str, list[float], float | None]]:
    """(what, against what, value per cycle size, mean) for the table."""

    def worst(run: str, name: str, source: dict[str, Any] = metrics) -> tuple[list[float], float]:
        case = source[f"gpo_{run}"][name]
        return [case["by_size"][size] for size in SIZES], case["worst_case_win_rate"]

    table: list[tuple[str, str, list[float], float | None]] = []
    for name, key, model in (
        ("pair accuracy", "accuracy", "gpm"),
        ("pair accuracy", "accuracy", "bt"),
        ("  best of any reward", "accuracy_ceiling", "bt"),
        ("NLL, nats", "nll", "gpm"),
        ("NLL, nats", "nll", "bt"),
        ("  maximum likelihood BT", "nll_best", "bt"),
        ("  of the truth itself", "nll", "truth"),
    ):
        who = "" if name.startswith(" ") else {"gpm": "GPM", "bt": "BT"}[model]
        table.append((name, who, [metrics[model][key][size] for size in SIZES], None))
    table.append(("worst case: start", "", *worst("gpm", "start")))
    for name in ("last", "average"):
        for run, who in WHO.items():
            table.append((f"worst case: {name}", who, *worst(run, name)))
    for run, who in WHO.items():
        table.append(("  last, simulated exactly", who, *worst(run, "last", metrics["simulation"])))
    for run, who in WHO.items():
        values = metrics[f"gpo_{run}"]["dominated_probability"]
        table.append(("dominated answer at the end", who, [values[size] for size in SIZES], None))
    return table


def text_table(metrics: dict[str, Any]) -> str:
    """The table for a terminal, and which promises were kept."""
    head = f"{'':<31}{'':<12}" + "".join(f"{f'cycle {size}':>9}" for size in SIZES) + f"{'mean':>9}"
    lines = [head, "-" * len(head)]
    for what, who, values, mean in rows(metrics):
        numbers = "".join(f"{value:>9.3f}" for value in values) + (f"{mean:>9.3f}" if mean is not None else "")
        lines.append(f"{what:<31}{who:<12}{numbers}")
    lines += ["", *(f"{'yes' if kept else 'NO ':<4} {goal}" for goal, kept in metrics["goals"].items())]
    return "\n".join(lines) + "\n"


def markdown(metrics: dict[str, Any]) -> str:
    """report.md."""
    last = {run: metrics[f"gpo_{run}"]["last"]["worst_case_win_rate"] for run in RUNS}
    lines = [
        "# Quickstart: cyclic preferences, learned and played",
        "",
        "Three prompts whose answers beat one another in cycles of 3, 4 and 5, and one answer that loses to all. Two "
        "reward models learned from the same comparisons, sampled unevenly. Then GPO trained the same policy against "
        "each, and against the GPM once more with a magnet: a pull towards the average of past policies. The worst "
        "case is a policy's win rate against its best opponent: 0.5 is unbeatable, 0.1 is a pure answer that another "
        "one beats.",
        "",
        f"**Last policy, mean over the cycles: {last['gpm_magnet']:.2f} against the GPM with the magnet, "
        f"{last['gpm']:.2f} without it, {last['bt']:.2f} against Bradley-Terry.**",
        "",
        "| | model | cycle 3 | cycle 4 | cycle 5 | mean |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for what, who, values, mean in rows(metrics):
        cells = [what.strip(), who, *(f"{value:.3f}" for value in values), "" if mean is None else f"{mean:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Accuracy counts the pairs that have a truly better answer. NLL is the expectation for a fresh comparison, "
        "the pairs as frequent as in training. Worst cases and probabilities are exact: read from the checkpoints' "
        "log-probabilities, against the true preferences. Probability that a policy leaves to any other text counts "
        "as lost. The simulation replaces networks by tables: BT by the maximum likelihood rewards of the sampled "
        "comparisons, the GPM by the true scores.",
        "",
        *(f"- [{'x' if kept else ' '}] {goal}" for goal, kept in metrics["goals"].items()),
        "",
    ]
    for name, caption in FIGURES.items():
        lines += [f"![{caption}]({name})", "", caption, ""]
    lines += ["| stage | seconds | peak memory, GB |", "|---|---:|---:|"]
    for stage, seconds in metrics["timings"].items():
        lines.append(f"| {stage} | {seconds:.0f} | {metrics['memory_gb'][stage]:.1f} |")
    lines += [
        "",
        f"Largest difference between an embedding in the Ray loop and the same from the checkpoint: "
        f"{metrics['reward_actor_gap']:.1e}.",
        "",
    ]
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Write the plots, metrics.json, table.txt and report.md to `folder`."""
    measurements = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
    settings = Settings()
    metrics = compute_metrics(measurements, settings)
    stamps = read_stamps(folder)
    metrics["timings"] = {name: stamp["seconds"] for name, stamp in stamps.items()}
    metrics["memory_gb"] = {name: stamp["peak_memory_gb"] for name, stamp in stamps.items()}
    metrics["peak_memory_gb"] = max(metrics["memory_gb"].values(), default=0.0)

    runs = {run: run_policies(measurements, run) for run in RUNS}
    simulated = simulate(measurements, settings)
    plots.worst_case(folder / "worst_case.png", runs, simulated)
    plots.policy(folder / "policy.png", runs)
    plots.scores(folder / "scores.png", {kind: learned_scores(measurements, kind) for kind in KINDS})
    polygons.simplex(folder / "simplex.png", runs, simulated)
    polygons.embeddings(folder / "embeddings.png", measurements["games"])
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_atomically(folder / "table.txt", text_table(metrics))
    write_atomically(folder / "report.md", markdown(metrics))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
