"""A comparison of policies as files: report.json, report.md and a plot of the win matrix."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf_gpm.files import write

PLOT = "win_matrix.png"


def write_report(folder: Path, found: dict[str, Any], title: str, plot: bool = True) -> None:
    """Write what `compare` found to FOLDER, each file whole or not at all. plot: needs matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plot and found["win_rates"] is not None
    if drawn:
        write(folder / PLOT, draw(found))
    write(folder / "report.json", json.dumps(found, indent=2) + "\n")
    write(folder / "report.md", markdown(found, title, drawn))


def markdown(found: dict[str, Any], title: str, drawn: bool) -> str:
    """report.md."""
    names = found["policies"]
    lines = [f"# {title}", ""]
    if found["win_rates"] is None:
        lines += [
            "The policies have no prompt in common, so they cannot be compared: let them answer the same prompts.",
            "",
            *_table(["", *names], [["judge's cyclic share", *(f"{s:.2f}" for s in found["judge_cyclic_share"])]]),
        ]
        return "\n".join(lines) + "\n"
    lines += [
        f"Mean win rate of the row's answers against the column's, in %, over {found['prompts']} prompts"
        + (", with 95 % intervals by prompt." if found["ci95"] else " (too few for intervals)."),
        "",
        *_table(["", *names], [[name, *_cells(found, i)] for i, name in enumerate(names)]),
        "",
        *_table(
            ["", *names],
            [
                ["against the best of these", *_percents(found["worst_case"])],
                ["share in the von Neumann mixture", *_percents(found["von_neumann"])],
                ["judge's cyclic share", *(f"{share:.2f}" for share in found["judge_cyclic_share"])],
            ],
        ),
        "",
        _spoken(found),
        "",
    ]
    if drawn:
        lines += [f"![win matrix]({PLOT})", ""]
    return "\n".join(lines)


def _spoken(found: dict[str, Any]) -> str:
    share = found["cyclic_share"]
    if len(found["policies"]) < 3:
        return "With two policies there is no cycle to see."
    chase = "they mostly chase each other" if share > 0.5 else "part of it is a cycle" if share > 0.1 else "a ranking"
    return f"Cyclic share of the policies: {share:.2f} ({chase}; 0: a ranking says it all, 1: a pure cycle)."


def _cells(found: dict[str, Any], row: int) -> list[str]:
    rates = _percents(found["win_rates"][row])
    if found["ci95"]:
        bounds = [f" [{100 * low:.1f}, {100 * high:.1f}]" for low, high in found["ci95"][row]]
        rates = [rate + bound for rate, bound in zip(rates, bounds, strict=True)]
    return ["–" if column == row else cell for column, cell in enumerate(rates)]


def _percents(values: Sequence[float]) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def draw(found: dict[str, Any]) -> bytes:
    """The win matrix as a PNG: blue where the row's policy wins."""
    from matplotlib.figure import Figure  # an extra

    names, rates = found["policies"], found["win_rates"]
    size = 1.6 + 0.8 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(rates, cmap="RdBu", vmin=0, vmax=1)
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            color = "white" if abs(rate - 0.5) > 0.3 else "#222222"
            axis.text(j, i, "–" if i == j else f"{100 * rate:.0f}", ha="center", va="center", color=color)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("against")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, shrink=0.7, ticks=[0, 0.5, 1], label="win rate")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()
