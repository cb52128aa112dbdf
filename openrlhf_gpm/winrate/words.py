"""What a comparison of policies says, in words and formatted numbers; the terminal and the page share it."""

from collections.abc import Sequence
from typing import Any


def percent(value: float | None) -> str:
    """A rate in %, without its sign; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval(bounds: Sequence[float] | None, digits: int = 1, scale: float = 100) -> str:
    """[low, high], in % by default; nothing where there is none."""
    return "" if bounds is None else f"[{scale * bounds[0]:.{digits}f}, {scale * bounds[1]:.{digits}f}]"


def of(matrix: Any, *place: int) -> Any:
    """The entry at a place; None where there is no matrix, as on few prompts."""
    for index in place:
        matrix = None if matrix is None else matrix[index]
    return matrix


def mean_win_rates(rates: Sequence[Sequence[float]]) -> list[float]:
    """Of each policy against the others: (P, P) -> (P,)."""
    return [(sum(line) - 0.5) / (len(rates) - 1) for line in rates]


def ranked(metrics: dict[str, Any]) -> list[int]:
    """Indices of the policies, best Elo first; ties by index."""
    return sorted(range(len(metrics["elo"])), key=lambda i: -metrics["elo"][i])


def spoken(metrics: dict[str, Any]) -> list[str]:
    """The findings, a sentence or two each."""
    names = metrics["policies"]
    lines = [_winner(metrics)]
    if len(names) < 3:
        return lines
    if metrics["cycles"]:
        shown = "; ".join(" beats ".join([*cycle, cycle[0]]) for cycle in metrics["cycles"][:3])
        more = f" (and {len(metrics['cycles']) - 3} more)" if len(metrics["cycles"]) > 3 else ""
        lines.append(f"A cycle, each win with an interval above 50 %: {shown}{more}.")
    elif metrics["cycles"] is not None:
        lines.append("No cycle of three policies is certain.")
    shares = sorted(zip(metrics["von_neumann"], names, strict=True), key=lambda each: -round(each[0], 3))
    mixture = ", ".join(f"{percent(share)} % {name}" for share, name in shares if share >= 0.0005)
    lines.append(
        f"The mixture that none of them beats: {mixture}. It wins {percent(metrics['von_neumann_worst_case'])} % "
        f"against its best opponent; the best single policy wins {percent(max(metrics['worst_case']))} % there."
    )
    bounds = interval(metrics["cyclic_share_ci95"], 2, 1)
    lines.append(
        f"Cyclic share {metrics['cyclic_share']:.2f}{f' {bounds}' if bounds else ''}: 0 is a ranking, 1 a pure cycle. "
        f"The Elo ranking misses a win rate by up to {percent(metrics['elo_misfit'])} points."
    )
    return lines


def _winner(metrics: dict[str, Any]) -> str:
    names, rates, ci95 = metrics["policies"], metrics["win_rates"], metrics["ci95"]
    everyone = range(len(names))
    others = {i: [j for j in everyone if j != i] for i in everyone}
    best = next((i for i in everyone if all(rates[i][j] > 0.5 for j in others[i])), None)
    if best is None:
        return "No policy beats all others."
    whom = "all others" if len(names) > 2 else names[others[best][0]]
    if ci95 is None:
        return f"{names[best]} beats {whom}; there are no intervals to say how surely."
    open_ = [names[j] for j in others[best] if ci95[best][j][0] <= 0.5]
    above = "every interval" if len(names) > 2 else "the interval"
    doubt = f"; against {', '.join(open_)} the interval holds 50 %" if open_ else f", with {above} above 50 %"
    return f"{names[best]} beats {whom}{doubt}."
