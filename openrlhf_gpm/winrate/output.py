"""A comparison of policies as files, metrics.json, prompts.jsonl and report.html, and as tables for a terminal."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_gpm.files import complete_directory
from openrlhf_gpm.winrate.page import page
from openrlhf_gpm.winrate.texts import AnswerFile
from openrlhf_gpm.winrate.words import interval, of, percent, ranked, spoken


def write_output(
    folder: Path,
    metrics: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    files: Sequence[AnswerFile],
    keys: Sequence[str],
    exported: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write what `measure` found to FOLDER, which appears when it is complete.

    keys: the prompts of the rows. exported: folder -> file -> what goes into it.
    """
    texts = [{file.policy: file.by_prompt[key].texts for file in files} for key in keys]
    html = page(metrics, rows, texts)
    with complete_directory(folder) as new:
        (new / "metrics.json").write_text(_json(metrics, indent=1) + "\n", encoding="utf-8")
        with open(new / "prompts.jsonl", "w", encoding="utf-8", newline="\n") as out:
            out.writelines(_json(row) + "\n" for row in rows)
        (new / "report.html").write_text(html, encoding="utf-8")
        for name, contents in exported.items():
            (new / name).mkdir()
            for file, content in contents.items():
                (new / name / file).write_text(_json(content, indent=1) + "\n", encoding="utf-8")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def tables(metrics: dict[str, Any]) -> str:
    """Win matrix, ranking and wins at equal length as text, columns aligned; then the findings in sentences."""
    names, rates = metrics["policies"], metrics["win_rates"]
    everyone = range(len(names))
    controlled = metrics["length_controlled"]

    def cell(i: int, j: int) -> str:
        return "–" if i == j else f"{percent(rates[i][j])} {interval(of(metrics['ci95'], i, j))}".rstrip()

    matrix = [[names[i], *(cell(i, j) for j in everyone)] for i in everyone]
    ranking = [
        [
            names[i],
            f"{metrics['elo'][i]:.0f} {interval(of(metrics['elo_ci95'], i), 0, 1)}".rstrip(),
            percent(metrics["von_neumann"][i]),
            percent(metrics["worst_case"][i]),
            f"{metrics['mean_length'][i]:.0f}",
        ]
        for i in ranked(metrics)
    ]
    lengths = [
        [
            f"{names[i]} against {names[j]}",
            percent(rates[i][j]),
            f"{percent(controlled['win_rates'][i][j])} {interval(of(controlled['ci95'], i, j))}".rstrip(),
        ]
        for i in everyone
        for j in everyone[i + 1 :]
    ]
    return "\n".join(
        [
            f"win rate of the row against the column in %, over {metrics['prompts']} prompts",
            *_aligned(["", *names], matrix),
            "",
            *_aligned(["", "Elo", "mixture, %", "worst case, %", "characters"], ranking),
            "",
            *_aligned(["", "win rate, %", "at equal length, %"], lengths),
            "",
            *spoken(metrics),
        ]
    )


def _aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    first, *others = widths
    return [
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))])
        for line in lines
    ]
