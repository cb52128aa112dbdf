"""Plots over steps and of score matrices. Every function writes one PNG, whole or not at all."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor
from world import GAMES

from openrlhf_gpm.core import worst_case_win_rate
from openrlhf_gpm.core.tabular import running_average

BLUE, ORANGE, GREY = "#0b62a4", "#d1582b", "#8a8a8a"
COLORS = {"gpm_magnet": BLUE, "gpm": "#58a6d6", "bt": ORANGE}
LABELS = {"gpm_magnet": "GPM, with the magnet", "gpm": "GPM, plain GPO", "bt": "Bradley-Terry"}
ANSWER_COLORS = (
    "#0b62a4",
    "#e0912f",
    "#3a9a5b",
    "#b5487f",
    "#6f5bb0",
    "#8a8a8a",
)  # the last is the dominated answer's

plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#555555",
        "axes.linewidth": 0.8,
        "legend.frameon": False,
        "figure.dpi": 100,
        "savefig.dpi": 180,
    }
)

Runs = dict[str, list[Tensor]]  # run -> per game the policies (T + 1, K)


def save(figure: Figure, path: Path) -> None:
    """Write to a temporary name, then rename."""
    temporary = path.with_name(f".{path.stem}.new.png")
    figure.savefig(temporary, bbox_inches="tight", facecolor="white")
    temporary.replace(path)
    plt.close(figure)


def answer_colors(size: int) -> list[str]:
    """One colour for each answer of a game; the dominated answer is grey in all."""
    return [*ANSWER_COLORS[:size], GREY]


def worst_case(path: Path, runs: Runs, simulated: Runs) -> None:
    """Worst-case win rate over the steps: of the policy, of its running average, and of the simulation's policy."""
    figure, axes = plt.subplots(1, len(GAMES), figsize=(10.5, 3.1), sharey=True, layout="constrained")
    for column, (axis, game) in enumerate(zip(axes, GAMES, strict=True)):
        for run in COLORS:
            policies, exact = runs[run][column], simulated[run][column]
            last = worst_case_win_rate(game.probs, policies)
            axis.plot(last, color=COLORS[run], lw=2.4, solid_capstyle="round")
            axis.plot(worst_case_win_rate(game.probs, running_average(policies)), color=COLORS[run], lw=0.9, alpha=0.6)
            axis.plot(worst_case_win_rate(game.probs, exact), color=COLORS[run], lw=1.3, ls=(0, (3, 2)))
            axis.annotate(
                f"{last[-1]:.2f}",
                (len(last) - 1, float(last[-1])),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=COLORS[run],
                fontweight="bold",
            )
        axis.axhline(0.5, color=GREY, lw=0.8)
        axis.set(title=f"cycle of {game.size}", xlabel="step", ylim=(0.05, 0.53), xlim=(0, len(policies) - 1))
        axis.set_xticks(range(0, len(policies), 5))
    axes[0].text(0.3, 0.493, "unbeatable", color=GREY, va="top", fontsize=8)
    axes[0].set_ylabel("win rate against\nthe best opponent")
    keys = [plt.Line2D([], [], color=COLORS[run], lw=2.4, label=LABELS[run]) for run in COLORS]
    keys += [
        plt.Line2D([], [], color="#333333", lw=2.4, label="the policy"),
        plt.Line2D([], [], color="#333333", lw=0.9, alpha=0.6, label="average so far"),
        plt.Line2D([], [], color="#333333", lw=1.3, ls=(0, (3, 2)), label="the policy, simulated exactly"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=6, fontsize=8.5, handlelength=2.2)
    save(figure, path)


def policy(path: Path, runs: Runs) -> None:
    """Probability of every answer over the steps, stacked: one row per run."""
    figure, axes = plt.subplots(
        len(COLORS), len(GAMES), figsize=(10.5, 7.0), sharex=True, sharey=True, layout="constrained"
    )
    for row, run in enumerate(COLORS):
        for column, game in enumerate(GAMES):
            axis, policies = axes[row, column], runs[run][column]
            steps = range(len(policies))
            order = [game.size, *range(game.size)]  # the dominated answer at the bottom, where its end is seen
            colors = answer_colors(game.size)
            axis.stackplot(
                steps,
                policies[:, order].mT.numpy(),
                colors=[colors[i] for i in order],
                labels=[game.answers[i] for i in order],
                edgecolor="white",
                linewidth=0.6,
            )
            axis.set(xlim=(0, len(policies) - 1), ylim=(0, 1))
            axis.set_xticks(range(0, len(policies), 5))
            if row == 0:
                axis.set_title(f"cycle of {game.size}")
            if row == len(COLORS) - 1:
                axis.set_xlabel("step")
                handles, labels = axis.get_legend_handles_labels()
                axis.legend(
                    handles[1:] + handles[:1],
                    labels[1:] + labels[:1],
                    loc="upper center",
                    bbox_to_anchor=(0.5, -0.24),
                    ncols=3,
                    fontsize=8,
                    handlelength=1.0,
                    columnspacing=1.2,
                )
        axes[row, 0].set_ylabel(f"{LABELS[run]}\nprobability of the answer")
    save(figure, path)


def scores(path: Path, learned: Runs) -> None:
    """Probability that the row's answer beats the column's: truth, GPM, Bradley-Terry for each game."""
    figure, axes = plt.subplots(
        3,
        len(GAMES),
        figsize=(11.0, 9.0),
        layout="constrained",
        width_ratios=[len(game.answers) for game in GAMES],
    )
    image = None
    for column, game in enumerate(GAMES):
        models = {"truth": game.scores, "GPM": learned["gpm"][column], "Bradley-Terry": learned["bt"][column]}
        for row, (name, matrix) in enumerate(models.items()):
            axis, probs = axes[row, column], torch.sigmoid(matrix)
            image = axis.imshow(probs, cmap="RdBu", vmin=0, vmax=1)
            wrong = (probs > 0.5) != (game.probs > 0.5)
            decisive = game.probs != 0.5
            for i in range(len(probs)):
                for j in range(len(probs)):
                    if i == j:
                        continue
                    strong = abs(float(probs[i, j]) - 0.5) > 0.3
                    axis.text(
                        j,
                        i,
                        f"{probs[i, j]:.2f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if strong else "#222222",
                    )
                    if wrong[i, j] and decisive[i, j]:  # the pair is ordered wrongly
                        box = plt.Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, ec="black", lw=1.8)
                        axis.add_patch(box)
            axis.set_xticks(
                range(len(probs)), game.answers if row == 2 else [""] * len(probs), rotation=40, ha="right"
            )
            axis.set_yticks(range(len(probs)), game.answers)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            if column == 0:
                axis.set_ylabel(name, fontsize=12, fontweight="bold", labelpad=8)
            if row == 0:
                axis.set_title(f"cycle of {game.size}")
    figure.get_layout_engine().set(w_pad=0.12)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.4, pad=0.015, ticks=[0, 0.5, 1])
    bar.set_label("P(row beats column); a frame marks a pair in the wrong order")
    bar.outline.set_visible(False)
    save(figure, path)
