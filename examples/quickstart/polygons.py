"""Plots in the plane: paths of policies inside a polygon of answers, and embeddings on the circle."""

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from plots import COLORS, GREY, LABELS, Runs, answer_colors, save
from torch import Tensor
from world import GAMES, Game


def corners(size: int) -> Tensor:
    """(size, 2): the corners of a regular polygon, the first on top, clockwise: each answer beats the next."""
    angles = math.pi / 2 - 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
    return torch.stack([angles.cos(), angles.sin()], -1)


def project(game: Game, policies: Tensor) -> Tensor:
    """(T, K) -> (T, 2): the mean of the corners under the policy among the cycle's answers.

    Exact for a cycle of 3; a shadow of the simplex for the others. The centre is the equal mixture.
    """
    inside = policies[:, : game.size]
    return (inside / inside.sum(-1, keepdim=True)) @ corners(game.size)


def simplex(path: Path, runs: Runs, simulated: Runs) -> None:
    """The path of the policy of each run, the average policy, and the exact simulation behind."""
    figure, axes = plt.subplots(1, len(GAMES), figsize=(10.5, 4.1), layout="constrained")
    for column, (axis, game) in enumerate(zip(axes, GAMES, strict=True)):
        _draw_polygon(axis, game)
        for run in COLORS:
            points, exact = project(game, runs[run][column]), project(game, simulated[run][column])
            average = project(game, runs[run][column].mean(0, keepdim=True))[0]
            axis.plot(*exact.mT, color=COLORS[run], lw=1.1, ls=(0, (3, 2)), alpha=0.7)
            axis.plot(*points.mT, color=COLORS[run], lw=1.6, marker="o", ms=2.6, label=LABELS[run])
            axis.plot(*average, marker="*", ms=15, color=COLORS[run], mec="white", mew=1.0, zorder=5)
        axis.plot(*points[0], marker="s", ms=6, color="#222222", mec="white", zorder=6)
        axis.set_title(f"cycle of {game.size}")
    keys = [plt.Line2D([], [], color=COLORS[run], lw=1.6, marker="o", ms=3, label=LABELS[run]) for run in COLORS]
    keys += [
        plt.Line2D([], [], color="#333333", lw=1.1, ls=(0, (3, 2)), label="exact simulation"),
        plt.Line2D([], [], color="#222222", ls="", marker="s", ms=6, label="start"),
        plt.Line2D([], [], color="#333333", ls="", marker="*", ms=11, label="average policy"),
        plt.Line2D([], [], color=GREY, ls="", marker="+", ms=9, mew=1.5, label="equal mixture"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=7, fontsize=8.5, handlelength=2.2)
    save(figure, path)


def _draw_polygon(axis: Axes, game: Game) -> None:
    points = corners(game.size)
    axis.fill(*points.mT, fc="#f5f5f5", ec="#bbbbbb", lw=1.0, zorder=0)
    axis.plot(0, 0, marker="+", ms=10, mew=1.5, color=GREY, zorder=1)
    for point, answer in zip(points.tolist(), game.cycle, strict=True):
        align = "center" if abs(point[0]) < 0.1 else ("left" if point[0] > 0 else "right")
        height = "center" if abs(point[1]) < 0.5 else ("bottom" if point[1] > 0 else "top")
        axis.text(1.06 * point[0], 1.06 * point[1], answer, ha=align, va=height, fontsize=9.5)
    axis.set(aspect="equal", xlim=(-1.45, 1.45), ylim=(-1.15, 1.22))
    axis.axis("off")


def principal_planes(embeddings: Tensor, gate: Tensor | None, size: int) -> Tensor:
    """Embeddings (K, 2k) seen in two planes: (2, K, 2), the scores' two most telling ones.

    A pair of coordinates is a complex number, and every score Im(conj z_i z_j) is the same after a unitary change of
    basis. The first plane is the principal one of the cycle's `size` answers around their mean, where the cycle turns;
    the second is the principal one of what is left. The gate is shared between the two embeddings of a score.
    """
    planes = embeddings.double().unflatten(-1, (-1, 2))  # (K, k, 2)
    if gate is not None:
        planes = planes * gate.double().sqrt().unsqueeze(-1)
    z = torch.view_as_complex(planes.contiguous())  # (K, k)
    first = torch.linalg.svd(z[:size] - z[:size].mean(0))[2][0]  # (k,)
    in_first = z @ first.conj()
    rest = z - in_first.unsqueeze(-1) * first
    in_second = rest @ torch.linalg.svd(rest)[2][0].conj()
    # A turn of a plane is unitary too: the first answer goes to the top, the middle of the cycle to the left.
    in_first = in_first * 1j / torch.sgn(in_first[0])
    in_second = -in_second / torch.sgn(in_second[:size].mean())
    return torch.view_as_real(torch.stack([in_first, in_second]))


def embeddings(path: Path, rows: list[dict[str, Any]]) -> None:
    """Each game's answers in its two principal planes; arrows lead from an answer to the one that it beats."""
    figure, axes = plt.subplots(2, len(GAMES), figsize=(10.5, 7.0), layout="constrained")
    for column, (game, row) in enumerate(zip(GAMES, rows, strict=True)):
        gate = None if row["gpm_gate"] is None else torch.tensor(row["gpm_gate"])
        cycle, rest = principal_planes(torch.tensor(row["gpm_embeddings"]), gate, game.size)
        _draw_points(axes[0, column], game, cycle)
        _draw_points(axes[1, column], game, rest)
        for i in range(game.size):
            style = {"arrowstyle": "-|>", "color": "#999999", "lw": 1.0, "shrinkA": 7, "shrinkB": 7}
            target, origin = cycle[(i + 1) % game.size].tolist(), cycle[i].tolist()
            axes[0, column].annotate("", target, origin, arrowprops=style)
            _label(axes[0, column], game, i, cycle)
        for axis, points in ((axes[0, column], cycle), (axes[1, column], rest)):
            _label(axis, game, game.size, points)
        middle = rest[: game.size].mean(0).tolist()
        lowest = float(rest[: game.size, 1].min())
        axes[1, column].annotate(
            "the cycle", (middle[0], lowest), xytext=(0, -9), textcoords="offset points", ha="center", va="top"
        )
        axes[0, column].set_title(f"cycle of {game.size}")
    for axis, text in zip(axes[:, 0], ("the plane of the cycle", "the plane of the dominated answer"), strict=True):
        axis.text(-0.04, 0.5, text, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=10)
    save(figure, path)


def _draw_points(axis: Axes, game: Game, points: Tensor) -> None:
    radius = float(points.norm(dim=-1).max())
    axis.add_patch(plt.Circle((0, 0), radius, fill=False, ec="#cccccc", lw=1.0))
    axis.axhline(0, color="#e6e6e6", lw=0.8, zorder=0)
    axis.axvline(0, color="#e6e6e6", lw=0.8, zorder=0)
    for point, color in zip(points.tolist(), answer_colors(game.size), strict=True):
        axis.plot(*point, marker="o", ms=8, color=color, mec="white", mew=1.0, zorder=4)
    limit = 1.3 * radius
    axis.set(aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _label(axis: Axes, game: Game, answer: int, points: Tensor) -> None:
    """The answer's name next to its point, on the outside if the point is far from the centre."""
    x, y = (points[answer] / points.norm(dim=-1).max()).tolist()
    outward = math.hypot(x, y) > 0.35
    axis.annotate(
        game.answers[answer],
        points[answer].tolist(),
        xytext=(10 * x, 10 * y) if outward else (0, -9),
        textcoords="offset points",
        ha="center" if abs(x) < 0.3 or not outward else ("left" if x > 0 else "right"),
        va="top" if not outward or y < -0.3 else ("bottom" if y > 0.3 else "center"),
        color=answer_colors(game.size)[answer],
        zorder=5,
    )
