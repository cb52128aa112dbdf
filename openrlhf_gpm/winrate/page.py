"""report.html: a comparison of policies as one page that needs no network; all texts in it are escaped.

The template, its style and its script lie next to this file. Everything is there without the script, which only folds,
sorts and filters the prompts.
"""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from openrlhf_gpm import look
from openrlhf_gpm.winrate.drawing import graph, strip
from openrlhf_gpm.winrate.markup import row, shade, table
from openrlhf_gpm.winrate.prompt_table import prompt_table
from openrlhf_gpm.winrate.words import interval, mean_win_rates, of, percent, ranked, spoken

ROOM = "openrlhf_gpm.winrate"

PROMPTS = 1000
"""On the page; further ones are in prompts.jsonl only, or a browser would take long."""


def page(metrics: dict[str, Any], rows: Sequence[dict[str, Any]], texts: Sequence[Mapping[str, Sequence[str]]]) -> str:
    """The whole page. rows: what `measure` says of the prompts; texts: the answers to each, by policy."""
    names = metrics["policies"]
    script = look.page_file(ROOM, "page.js")
    shown = min(len(rows), PROMPTS)
    kept = "" if shown == len(rows) else f"The first {shown} of {len(rows)} prompts; all are in prompts.jsonl. "
    return Template(look.page_file(ROOM, "page.html")).substitute(
        script_hash=look.allowed(f"\n{script}\n"),
        title=escape(", ".join(names)),
        style=look.style(ROOM, "page.css"),
        script=script,
        lead=_lead(metrics),
        findings="\n".join(f"<li>{escape(line)}</li>" for line in spoken(metrics)),
        warnings=_warnings(metrics["warnings"]),
        matrix=_matrix(metrics),
        figure=_figure(metrics),
        ranking=_ranking(metrics),
        length=_length(metrics),
        subsets=_subsets(metrics),
        subset_options="".join(
            f'<option value="{escape(value)}">{escape(name)}</option>'
            for value, name in [("", "any"), *((name, name) for name in metrics["by_subset"])]
        ),
        page_note=f"{kept}Best is the policy with the highest mean win rate against the others on that prompt.",
        best_options="".join(
            f'<option value="{value}">{escape(name)}</option>'
            for value, name in [("", "any"), *((str(i), name) for i, name in enumerate(names)), ("tie", "a tie")]
        ),
        first_options=_options(names, 0),
        second_options=_options(names, 1),
        prompts=prompt_table(names, rows[:PROMPTS], texts[:PROMPTS]),
        footer=_footer(metrics),
    )


def _lead(metrics: dict[str, Any]) -> str:
    names, answers = metrics["policies"], metrics["answers"]
    counts = ", ".join(f"{escape(name)} ({count} answers)" for name, count in zip(names, answers, strict=True))
    return f"{counts}, on the same {metrics['prompts']} prompts, judged by a General Preference Model."


def _footer(metrics: dict[str, Any]) -> str:
    settings = metrics.get("settings", {})
    said = [
        f"{escape(str(name))} {escape(str(settings[name]))}"
        for name in ("model", "bootstrap", "seed")
        if name in settings
    ]
    if "judge" in settings:
        said.insert(0, f"judge {escape(settings['judge'][:12])}")
    said.append(f"cyclic share of the judge inside a prompt's answers {metrics['judge_cyclic_share']:.2f}")
    return "Written by openrlhf-gpm winrate: " + ", ".join(said) + ". A judge's taste is not the truth."


def _warnings(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f'<div class="warnings"><ul>{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul></div>'


def _matrix(metrics: dict[str, Any]) -> str:
    names, rates, ci95 = metrics["policies"], metrics["win_rates"], metrics["ci95"]

    def cell(i: int, j: int) -> str:
        if i == j:
            return "<td>–</td>"
        bounds = of(ci95, i, j)
        sure = bounds is not None and (bounds[0] > 0.5 or bounds[1] < 0.5)
        number = f"{percent(rates[i][j])}<small>{interval(bounds)}</small>"
        link = (
            f'<a href="#prompts-title" data-first="{i}" data-second="{j}"{" class=sure" if sure else ""}>{number}</a>'
        )
        return f"<td {shade(rates[i][j])}>{link}</td>"

    everyone = range(len(names))
    body = [row(escape(names[i]), [cell(i, j) for j in everyone]) for i in everyone]
    caption = "Win rate of the row against the column in %, mean over prompts" + (
        ", with 95 % intervals by prompt" if ci95 else ""
    )
    return table("matrix", "Win matrix", ["", *map(escape, names)], body, caption)


def _figure(metrics: dict[str, Any]) -> str:
    if len(metrics["policies"]) < 3:
        return ""
    caption = "An arrow leads from the winner to the loser, thicker for higher win rates."
    if metrics["ci95"]:
        caption += " Dashed: the interval holds 50&nbsp;%."
    drawn = graph(metrics["policies"], metrics["win_rates"], metrics["ci95"])
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _ranking(metrics: dict[str, Any]) -> str:
    elo, elo_ci95, mixture = metrics["elo"], metrics["elo_ci95"], metrics["von_neumann"]
    reach = [*elo, *(bound for bounds in elo_ci95 or [] for bound in bounds)]
    body = [
        row(
            escape(metrics["policies"][i]),
            [
                _cell(f"{elo[i]:.0f}", interval(of(elo_ci95, i), 0, 1)),
                f'<td class="text">{strip(elo[i], of(elo_ci95, i), min(reach), max(reach))}</td>',
                f'<td class="win" style="--by:{mixture[i]:.3f}">{percent(mixture[i])}</td>',
                _cell(percent(metrics["worst_case"][i])),
                _cell(f"{metrics['mean_length'][i]:.0f}"),
            ],
        )
        for i in ranked(metrics)
    ]
    of_mixture = [_cell(""), _cell(""), _cell("100.0"), _cell(percent(metrics["von_neumann_worst_case"])), _cell("")]
    head = ["", "Elo", "", "share of the mixture, %", "worst case, %", "characters"]
    return table("ranking", "Ranking and mixture", head, [*body, row("the mixture", of_mixture)])


def _length(metrics: dict[str, Any]) -> str:
    names, lengths, controlled = metrics["policies"], metrics["mean_length"], metrics["length_controlled"]
    body = [
        row(
            f"{escape(names[i])} against {escape(names[j])}",
            [
                _cell(f"{lengths[i] - lengths[j]:+.0f}"),
                _cell(_whole(of(metrics["n_eff"], i, j))),
                _cell(percent(metrics["win_rates"][i][j]), interval(of(metrics["ci95"], i, j))),
                _cell(percent(controlled["win_rates"][i][j]), interval(of(controlled["ci95"], i, j))),
                _cell(_signed(controlled["slope"][i][j])),
            ],
        )
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    head = ["", "longer by", "N_eff", "win rate, %", "at equal length, %", "slope"]
    return table("lengths", "Win rates at equal length", head, body)


def _cell(number: str, bounds: str = "") -> str:
    return f"<td>{number}<small>{bounds}</small></td>" if bounds else f"<td>{number}</td>"


def _subsets(metrics: dict[str, Any]) -> str:
    """The section; nothing where no prompt has a subset."""
    if not metrics["by_subset"]:
        return ""
    body = [
        row(
            escape(subset),
            [
                _cell(str(found["prompts"])),
                *(f"<td {shade(rate)}>{percent(rate)}</td>" for rate in mean_win_rates(found["win_rates"])),
            ],
        )
        for subset, found in metrics["by_subset"].items()
    ]
    head = ["", "prompts", *map(escape, metrics["policies"])]
    caption = "Mean win rate against the other policies in %, on the prompts of a subset"
    shown = table("subsets", "By subset", head, body, caption)
    return f'<section aria-labelledby="subsets">\n<h2 id="subsets">By subset</h2>\n{shown}\n</section>\n'


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _options(names: Sequence[str], chosen: int) -> str:
    return "".join(
        f'<option value="{i}"{" selected" if i == chosen else ""}>{escape(name)}</option>'
        for i, name in enumerate(names)
    )
