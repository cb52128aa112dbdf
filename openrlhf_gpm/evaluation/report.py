"""report.md: one column per model and one for the longer-wins baseline; the paper's numbers below."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from openrlhf_gpm.evaluation.cycles import MAX_EXACT
from openrlhf_gpm.evaluation.rewardbench import ITEMS, SECTIONS, SUBSETS_V2

Results = dict[str, dict[str, Any]]

BASELINE = "longer wins"
MAX_ROWS = 50
"""Subsets per table; some data has one for every row."""

PAPER_CYCLIC = (
    ("no instruction following", "62.4", "100"),
    ("no honesty", "61.6", "100"),
    ("no truthfulness", "50.0", "100"),
    ("no helpfulness", "62.9", "100"),
)
"""Accuracy in % of Bradley-Terry and GPM on cyclic sets, Gemma-2B-it: arXiv 2410.02197, table 1."""

PAPER_REWARDBENCH = (
    ("Gemma-2B-it, arXiv v1 (GPM dim 8)", "68.9", "74.5"),
    ("Llama-3.1-8B, arXiv v1 (GPM dim 6)", "91.1", "92.1"),
    ("Gemma-2B-it, ICML 2025 (GPM dim 6)", "74.85", "82.29"),
    ("Llama-3.1-8B, ICML 2025 (GPM dim 8)", "90.56", "91.90"),
)
"""RewardBench v1 mean in % of Bradley-Terry and GPM: arXiv 2410.02197."""


def markdown(
    results: Results, baseline: dict[str, Any], differences: Sequence[dict[str, Any]], pictures: Sequence[str] = ()
) -> str:
    """The report of one or several models on the same data. `baseline` is `evaluate`'s result for longer-wins."""
    first = next(iter(results.values()))
    beside = {**results, BASELINE: baseline}
    parts = ["# Evaluation", _data(first["data"]), _spoken(results)]
    if first["pairs"]:
        parts += [
            _pairs(beside, differences),
            _parts(beside, "by_data", "file"),
            _parts(beside, "by_subset", "subset"),
        ]
    for name, section in (("rewardbench", _rewardbench), ("rewardbench2", _rewardbench2), ("cyclic", _cyclic)):
        if name in first and not (name == "cyclic" and first[name]["cyclic_groups"] == 0):  # only ranked groups
            parts.append(section(beside))
    parts.append(_groups(results))
    if pictures:
        parts.append("## Plots\n\n" + "\n".join(f"![{Path(name).stem}]({name})" for name in pictures))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. The first column is text, the others are numbers. A bar inside a cell is escaped."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(value: float | None, ci: Sequence[float] | None = None) -> str:
    """0.5 -> "50.0", with an interval "50.0 [45.1, 54.9]"; a dash for None."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f" [{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]" if ci else "")


def _data(data: Sequence[dict[str, Any]]) -> str:
    rows = [[d["name"], str(d["rows"]), str(d["groups"])] for d in data]
    skipped = [f"- {d['name']}: {d['skipped']}" for d in data if d["skipped"]]
    return "\n\n".join(filter(None, [table(["data", "rows", "groups scored"], rows), "\n".join(skipped)]))


def _spoken(results: Results) -> str:
    """Ties and missing scores, which a reader must not miss."""
    lines = []
    for name, result in results.items():
        counts = {"ties": "tied", "nan": "without a finite score"}
        found = [f"{result[key]} {what}" for key, what in counts.items() if result[key]]
        if found:
            lines.append(
                f"- **{name}**: {' and '.join(found)}, of {result['pairs']} comparisons; they count as wrong."
            )
    undecided = next(iter(results.values()))["undecided"]
    if undecided:
        lines.append(f"- {undecided} comparisons have the label 1/2: left out of accuracy.")
    return "\n".join(lines)


def _pairs(beside: Results, differences: Sequence[dict[str, Any]]) -> str:
    first = next(iter(beside.values()))

    def row(label: str, cell: Callable[[dict[str, Any]], str]) -> list[str]:
        return [label, *(cell(result) for result in beside.values())]

    def number(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda result: "–" if result is beside[BASELINE] else _decimal(result[key], result["ci95"].get(key))

    rows = [
        row("accuracy %", lambda result: percent(result["accuracy"], result["ci95"].get("accuracy"))),
        *[row(label, number(key)) for key, label in (("nll", "NLL, nats"), ("brier", "Brier"), ("ece", "ECE"))],
        row("ties", lambda result: str(result["ties"])),
        row("no finite score", lambda result: str(result["nan"])),
    ]
    text = [f"## Pairs\n\n{first['pairs']} comparisons of {first['prompts']} prompts; 95 % intervals over prompts."]
    text.append(table(["", *beside], rows))
    if differences:
        shown = [
            [
                f"{d['a']} - {d['b']}",
                percent(d["difference"], d["ci95"]),
                {True: "yes", False: "no"}.get(d["separated"], "–"),
            ]
            for d in differences
        ]
        text.append("Differences of accuracy, paired by prompt:")
        text.append(table(["", "points %", "interval excludes 0"], shown))
    return "\n\n".join(text)


def _parts(beside: Results, key: str, label: str) -> str:
    """Accuracy by file or by subset; nothing if there are none."""
    first = next(iter(beside.values()))
    names = list(first.get(key, {}))
    if not names:
        return ""
    if len(names) > MAX_ROWS:
        names = sorted(sorted(names, key=lambda name: -first[key][name]["pairs"])[:MAX_ROWS])
    rows = []
    for name in names:
        entries = [result[key][name] for result in beside.values()]
        cells = [percent(entry["accuracy"], entry["ci95"].get("accuracy")) for entry in entries]
        rows.append([name, str(entries[0]["pairs"]), str(entries[0]["prompts"]), *cells])
    cut = (
        ""
        if len(names) == len(first[key])
        else f"\n\nThe {MAX_ROWS} largest of {len(first[key])}; all are in metrics.json."
    )
    return f"### Accuracy % by {label}\n\n" + table([label, "pairs", "prompts", *beside], rows) + cut


def _rewardbench(beside: Results) -> str:
    found = {name: result["rewardbench"] for name, result in beside.items()}
    first = next(iter(found.values()))
    sections = [name for name in (*SECTIONS, "mean") if name in first]
    rows = [[name, *(percent(scores.get(name)) for scores in found.values())] for name in sections]
    weights = [
        [
            name,
            row["section"],
            f"{row['items']} of {ITEMS[name]}",
            str(row["weight"]),
            *(percent(s["subsets"][name]["accuracy"]) for s in found.values()),
        ]
        for name, row in first["subsets"].items()
    ]
    text = ["## RewardBench", table(["section, %", *found], rows)]
    if first["partial"]:
        lacking = "; ".join(f"{section}: {', '.join(names)}" for section, names in first["partial"].items())
        text.append(f"**Partial**, not comparable with published numbers. Missing: {lacking}.")
    text += [
        table(["subset", "section", "items", "weight", *found], weights),
        "The paper's models, mean %:",
        table(["", "Bradley-Terry", "GPM"], PAPER_REWARDBENCH),
    ]
    return "\n\n".join(text)


def _rewardbench2(beside: Results) -> str:
    found = {name: result["rewardbench2"] for name, result in beside.items()}
    first = next(iter(found.values()))
    names = [name for name in SUBSETS_V2 if name in first["subsets"]]
    rows = [
        [name, str(first["items"][name]), *(percent(s["subsets"][name]) for s in found.values())] for name in names
    ]
    rows.append(["mean", "", *(percent(s["mean"]) for s in found.values())])
    text = ["## RewardBench 2", table(["subset, %", "items", *found], rows)]
    if first["missing"]:
        text.append(f"**Partial**, not comparable with published numbers. Missing: {', '.join(first['missing'])}.")
    if first["not_items"]:
        text.append(
            f"{first['not_items']} rows of these subsets are left out: they are not items (one right and three wrong "
            "answers, or an item of Ties with its id)."
        )
    return "\n\n".join(text)


def _cyclic(beside: Results) -> str:
    found = {name: result["cyclic"] for name, result in beside.items()}
    first = next(iter(found.values()))

    def row(label: str, entries: list[dict[str, Any]]) -> list[str]:
        cells = [f"{percent(entry['accuracy'])} / {percent(entry['whole'])}" for entry in entries]
        return [label, str(entries[0]["groups"]), percent(entries[0]["ranking_bound"]), *cells]

    rows = [row("all", list(found.values()))]
    cyclic = [name for name, entry in first["by_subset"].items() if entry["cyclic_groups"] != 0][:MAX_ROWS]
    rows += [row(name, [entry["by_subset"][name] for entry in found.values()]) for name in cyclic]
    too_many = (
        f" Groups without an exact bound, because cycles connect more than {MAX_EXACT} of their responses: "
        f"{first['without_bound']}."
    )
    open_ = too_many if first["without_bound"] else ""
    return "\n\n".join(
        [
            "## Cyclic sets",
            "Accuracy % / groups reproduced whole %, on groups of three or more compared responses. No ranking, and "
            "so no scalar reward, can exceed the bound, which is below 100 in "
            f"{percent(first['cyclic_groups'])} % of them.{open_}",
            table(["set", "groups", "bound of a ranking", *found], rows),
            "The paper's cyclic sets, accuracy %:",
            table(["", "Bradley-Terry", "GPM"], PAPER_CYCLIC),
        ]
    )


def _groups(results: Results) -> str:
    """Metrics of whole groups; nothing without groups, or without a finite score in them."""
    found = {name: result["groups"] for name, result in results.items() if "groups" in result}
    if not found:
        return ""
    first = next(iter(found.values()))
    rows = [
        ["cyclic share, mean", *(_decimal(g["cyclic_share"]["mean"]) for g in found.values())],
        ["cyclic share, median", *(_decimal(g["cyclic_share"]["q50"]) for g in found.values())],
        ["cyclic share, 95 % quantile", *(_decimal(g["cyclic_share"]["q95"]) for g in found.values())],
        ["groups with a 3-cycle, %", *(percent(g["cycle_rate"]) for g in found.values())],
        ["groups without a Condorcet winner, %", *(percent(g["no_condorcet_winner"]) for g in found.values())],
        ["groups left out, no finite score", *(str(g["nan"]) for g in found.values())],
    ]
    text = [f"## Groups\n\n{first['groups']} groups of three or more responses.", table(["", *found], rows)]
    for name, group in found.items():
        selectors = group["selectors"]
        matrix = [
            [of, *(percent(value) for value in line), percent(single)]
            for of, line, single in zip(
                selectors["names"], selectors["agreement"], selectors["single_best"], strict=True
            )
        ]
        text.append(f"How often two ways to choose pick the same best response, {name}, %:")
        text.append(table(["", *selectors["names"], "one best"], matrix))
    return "\n\n".join(text)


def _decimal(value: float | None, ci: Sequence[float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else "")
