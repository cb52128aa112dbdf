"""Pictures of a comparison as SVG inside a page: who beats whom, and a rating with its interval.

Their colours are classes of the page's style, so they follow its light and dark mode.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, RADIUS = 360.0, 300.0, 100.0
NODE = 9.0
LABEL = 20
"""Characters of a name in the picture; the whole name is its tooltip."""

Matrix = Sequence[Sequence[float]]


def graph(names: Sequence[str], rates: Matrix, ci95: Sequence[Sequence[Sequence[float]]] | None) -> str:
    """Policies on a circle, with an arrow from the winner to the loser of each pair.

    It is dashed where the interval holds 1/2; without intervals all are whole.
    """
    turns = [math.pi / 2 - 2 * math.pi * i / len(names) for i in range(len(names))]
    places = [(WIDTH / 2 + RADIUS * math.cos(t), HEIGHT / 2 - RADIUS * math.sin(t)) for t in turns]
    wins = [(i, j) for i, row in enumerate(rates) for j, rate in enumerate(row) if rate > 0.5]
    arrows = [
        _arrow(places[i], places[j], rates[i][j], ci95 is None or ci95[i][j][0] > 0.5, len(names) <= 4)
        for i, j in wins
    ]
    said = (
        "; ".join(f"{names[i]} beats {names[j]}, {100 * rates[i][j]:.0f} %" for i, j in wins)
        or "all win rates are 50 %"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" width="{WIDTH:.0f}" role="img" aria-label="{escape(said)}">'
        + '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="11" markerHeight="11" '
        + 'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0 0L10 5L0 10z"/></marker></defs>'
        + "".join(arrows)
        + "".join(_node(name, *place, turn) for name, place, turn in zip(names, places, turns, strict=True))
        + "</svg>"
    )


def strip(value: float, bounds: Sequence[float] | None, low: float, high: float) -> str:
    """A point with its interval on the scale from `low` to `high`; the number beside it says the same."""

    def x(at: float) -> float:
        return 6 + 88 * (at - low) / (high - low) if high > low else 50.0

    bar = "" if bounds is None else f'<path class="bar" d="M{x(bounds[0]):.1f} 8H{x(bounds[1]):.1f}"/>'
    return (
        '<svg viewBox="0 0 100 16" width="100" height="16" aria-hidden="true"><path class="axis" d="M0 8H100"/>'
        f'{bar}<circle class="node" cx="{x(value):.1f}" cy="8" r="4"/></svg>'
    )


def _arrow(winner: tuple[float, float], loser: tuple[float, float], rate: float, sure: bool, with_number: bool) -> str:
    (x, y), (to_x, to_y) = winner, loser
    length = math.hypot(to_x - x, to_y - y)
    along_x, along_y = (to_x - x) / length, (to_y - y) / length
    gap = NODE + 4
    line = f"M{x + gap * along_x:.1f} {y + gap * along_y:.1f}L{to_x - gap * along_x:.1f} {to_y - gap * along_y:.1f}"
    dashes = "" if sure else ' stroke-dasharray="5 4"'
    path = (
        f'<path class="edge" d="{line}" stroke-width="{1 + 5 * (2 * rate - 1):.2f}"{dashes} marker-end="url(#head)"/>'
    )
    if not with_number:
        return path
    # A third of the way: lines that cross in the middle keep their numbers apart.
    text_x, text_y = x + 0.36 * (to_x - x), y + 0.36 * (to_y - y) + 4
    return f'{path}<text class="rate" x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="middle">{100 * rate:.0f}</text>'


def _node(name: str, x: float, y: float, turn: float) -> str:
    label_y = y - 17 if math.sin(turn) > -0.1 else y + 27
    short = name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
    return (
        f'<g><title>{escape(name)}</title><circle class="node" cx="{x:.1f}" cy="{y:.1f}" r="{NODE}"/>'
        f'<text class="label" x="{x:.1f}" y="{label_y:.1f}" text-anchor="middle">{escape(short)}</text></g>'
    )
