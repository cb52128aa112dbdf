"""The prompts of a page: a row for each, and below it the answers and the win rates on that prompt."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.winrate.markup import row as named_row
from openrlhf_gpm.winrate.markup import shade, table
from openrlhf_gpm.winrate.words import percent


def prompt_table(
    names: Sequence[str], rows: Sequence[dict[str, Any]], texts: Sequence[Mapping[str, Sequence[str]]]
) -> str:
    """The table, in HTML. rows: what `measure` says of the prompts; texts: the answers to each, by policy."""
    columns = [
        ("number", "text", "", "Prompt"),
        ("rate", "text", "", "Best, %"),
        ("pair", "", ' id="pair-head"', f"{escape(names[0])} against {escape(names[1])}, %"),
        ("cyclic", "", "", "Cyclic share"),
    ]
    head = "".join(
        f'<th scope="col" class="{kind}" data-key="{key}"><button type="button"{mark}>{title}</button></th>'
        for key, kind, mark, title in columns
    )
    bodies = [_prompt(names, n, row, text) for n, (row, text) in enumerate(zip(rows, texts, strict=True))]
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Prompts"><table id="prompts">'
        f"<thead><tr>{head}</tr></thead>\n{chr(10).join(bodies)}\n</table></div>"
    )


def _prompt(names: Sequence[str], number: int, row: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> str:
    rates = row["win_rates"]
    best = "tie" if row["best"] is None else str(names.index(row["best"]))
    flat = " ".join(f"{rate:.6g}" for line in rates for rate in line)
    asked = escape(_last_text(row["prompt"]))
    winner = "a tie" if row["best"] is None else f"{escape(row['best'])}<small>{percent(row['win_rate'])}</small>"
    return (
        f'<tbody data-best="{best}" data-rate="{row["win_rate"]:.6g}" data-cyclic="{row["cyclic_share"]:.6g}" '
        f'data-rates="{flat}" data-subset="{escape(row["subset"] or "")}">\n'
        f'<tr><td class="text"><button type="button" class="open" aria-controls="detail-{number}">'
        f'<span>{asked}</span></button></td><td class="text name">{winner}</td>'
        f'<td class="of-pair">{percent(rates[0][1])}</td><td>{row["cyclic_share"]:.2f}</td></tr>\n'
        f'<tr class="detail" id="detail-{number}"><td colspan="4">{_detail(names, row, texts)}</td></tr>\n</tbody>'
    )


def _detail(names: Sequence[str], row: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> str:
    prompt: Prompt = row["prompt"]
    turns = [("prompt", prompt)] if isinstance(prompt, str) else [(turn["role"], turn["content"]) for turn in prompt]
    asked = "".join(f"<h3>{escape(role)}</h3><pre>{escape(content)}</pre>" for role, content in turns)
    rates = row["win_rates"]
    body = [
        named_row(
            escape(name),
            ["<td>–</td>" if i == j else f"<td {shade(p)}>{percent(p)}</td>" for j, p in enumerate(rates[i])],
        )
        for i, name in enumerate(names)
    ]
    answers = "".join(
        f"<div><h3>{escape(name)}, {length:.0f} characters</h3>{_texts(texts[name])}</div>"
        for name, length in zip(names, row["lengths"], strict=True)
    )
    matrix = table("matrix", "Win rates on this prompt", ["", *map(escape, names)], body)
    return f'<div class="asked">{asked}</div>{matrix}<div class="texts">{answers}</div>'


def _last_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _texts(texts: Sequence[str]) -> str:
    return "".join(f"<pre>{escape(text)}</pre>" for text in texts)
