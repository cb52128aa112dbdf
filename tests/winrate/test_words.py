"""The sentences of a comparison say what its numbers say, and no more."""

import pytest
import torch

from openrlhf_gpm.winrate.matrix import play
from openrlhf_gpm.winrate.words import spoken


def found(rates: list[list[float]], spread: float = 0.0, prompts: int = 20) -> dict:
    """The game of win rates that are `spread` higher on one half of the prompts and lower on the other."""
    mean = torch.tensor(rates, dtype=torch.float64)
    shift = spread * torch.sign(mean - 0.5)
    by_prompt = torch.stack([mean + shift, mean - shift] * (prompts // 2))
    names = "abc"[: len(rates)]
    return play(names, by_prompt) | {"policies": names}


CHAIN = [[0.5, 0.6, 0.8], [0.4, 0.5, 0.7], [0.2, 0.3, 0.5]]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (found(CHAIN), "a beats all others, with every interval above 50 %."),
        (found(CHAIN, 0.35), "a beats all others; against b the interval holds 50 %."),
        (found(CHAIN, prompts=8), "a beats all others; there are no intervals to say how surely."),
        (found([[0.5, 0.4], [0.6, 0.5]]), "b beats a, with the interval above 50 %."),
        (found([[0.5, 0.5], [0.5, 0.5]]), "No policy beats all others."),
        (found([[0.5, 0.6, 0.5], [0.4, 0.5, 0.7], [0.5, 0.3, 0.5]]), "No policy beats all others."),
    ],
)
def test_who_wins_and_how_surely(metrics, said):
    assert spoken(metrics)[0] == said


def test_a_cycle_is_spelled_out_with_the_mixture_that_answers_it():
    lines = spoken(found([[0.5, 0.8, 0.2], [0.2, 0.5, 0.8], [0.8, 0.2, 0.5]], 0.05))
    assert lines[1] == "A cycle, each win with an interval above 50 %: a beats b beats c beats a."
    assert lines[2] == (
        "The mixture that none of them beats: 33.3 % a, 33.3 % b, 33.3 % c. It wins 50.0 % against its best opponent; "
        "the best single policy wins 20.0 % there."
    )
    assert lines[3].startswith("Cyclic share 1.00 [1.00, 1.00]: 0 is a ranking, 1 a pure cycle.")
    assert lines[3].endswith("The Elo ranking misses a win rate by up to 30.0 points.")


def test_without_a_certain_cycle_and_without_intervals_nothing_is_claimed():
    assert spoken(found(CHAIN))[1] == "No cycle of three policies is certain."
    assert not any("ycle of" in line for line in spoken(found(CHAIN, prompts=8)))
