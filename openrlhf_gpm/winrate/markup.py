"""Tables of a page in HTML. What is passed in is HTML already: texts are escaped where they come from."""

from collections.abc import Iterable, Sequence


def shade(rate: float) -> str:
    """Class and strength of a cell's colour."""
    return f'class="{"win" if rate >= 0.5 else "lose"}" style="--by:{abs(2 * rate - 1):.3f}"'


def table(kind: str, label: str, head: Sequence[str], body: Iterable[str], caption: str = "") -> str:
    """A table that scrolls sideways by itself, by keyboard too. head and body: cells and rows in HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    title = f"<caption><span>{caption}</span></caption>" if caption else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="{kind}">{title}'
        f"<thead><tr>{top}</tr></thead><tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def row(name: str, cells: Iterable[str]) -> str:
    """A row of a table, under its name."""
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'
