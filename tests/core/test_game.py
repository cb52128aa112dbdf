"""Von Neumann winner, exploitability and Hodge split of a group."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from openrlhf_gpm.core import (
    bt_scores,
    cyclic_share,
    exploitability,
    group_probs,
    hodge_split,
    von_neumann_winner,
    worst_case_win_rate,
)

CYCLE = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])  # rock-paper-scissors
some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine


@st.composite
def skew_matrices(draw, bound: float = 60.0) -> Tensor:
    K = draw(st.integers(1, 7))
    m = torch.tensor(draw(st.lists(st.floats(-bound, bound, width=32), min_size=K * K, max_size=K * K))).view(K, K)
    return m - m.T


def random_game(K: int, kind: str, seed: int) -> Tensor:
    """A (K, K) skew matrix of one of the shapes that make linear programs hard."""
    g = torch.Generator().manual_seed(seed)
    m = 3 * torch.randn(K, K, generator=g)
    if kind == "skewed":  # entries over many orders of magnitude
        m = m * (6 * torch.randn(K, K, generator=g)).exp()
    elif kind == "saturated":  # probabilities 0, 1/2 and 1
        m = 50 * m.sign() * (m.abs() > 1)
    elif kind == "ring":  # i beats i + 1 only, by very different amounts
        i = torch.arange(K)
        m = torch.zeros(K, K)
        m[i, (i + 1) % K] = (3 * torch.randn(K, generator=g)).exp()
    elif kind == "duplicates":  # each response twice
        m = m[: (K + 1) // 2, : (K + 1) // 2].repeat(2, 2)[:K, :K]
    elif kind == "nearly_bt":
        return bt_scores(torch.randn(K, generator=g)) + 1e-3 * (m - m.T)
    return (m - m.T).clamp(-1e30, 1e30)


KINDS = ["plain", "skewed", "saturated", "ring", "duplicates", "nearly_bt"]


# Worst case and exploitability.


def test_worst_case_by_hand():
    probs = torch.tensor([[0.5, 0.8, 0.3], [0.2, 0.5, 0.9], [0.7, 0.1, 0.5]])
    policy = torch.tensor([0.5, 0.25, 0.25])
    # columns: .25 + .05 + .175 = .475; .4 + .125 + .025 = .55; .15 + .225 + .125 = .5
    assert worst_case_win_rate(probs, policy).item() == pytest.approx(0.475)
    assert exploitability(probs, policy).item() == pytest.approx(0.025)


def test_worst_case_agrees_with_an_explicit_loop_over_opponents():
    probs = group_probs(torch.stack([random_game(5, "plain", seed) for seed in range(3)]))
    policy = torch.softmax(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)), -1)
    for b in range(3):
        against = [sum(policy[b, i] * probs[b, i, j] for i in range(5)) for j in range(5)]
        torch.testing.assert_close(worst_case_win_rate(probs, policy)[b], min(against))


def test_uniform_play_is_unexploitable_in_rock_paper_scissors_and_pure_play_is_exploited():
    probs = group_probs(5 * CYCLE)
    assert exploitability(probs, torch.ones(3) / 3).item() == pytest.approx(0.0, abs=1e-6)
    assert exploitability(probs, torch.tensor([1.0, 0.0, 0.0])).item() == pytest.approx(0.5, abs=0.01)


# The von Neumann winner.


@some
@given(skew_matrices())
def test_section_5_the_von_neumann_winner_exists_and_no_opponent_beats_it(scores):
    policy = von_neumann_winner(scores)
    assert (policy >= 0).all()
    assert policy.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert worst_case_win_rate(group_probs(scores), policy) >= 0.5 - 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [2, 3, 9, 33, 64])
def test_worst_case_is_one_half_for_hard_matrices(kind, K):
    scores = torch.stack([random_game(K, kind, seed) for seed in range(6)])
    policy = von_neumann_winner(scores)
    assert exploitability(group_probs(scores), policy).max() < 1e-5  # a tenth of what is promised
    torch.testing.assert_close(policy.sum(-1), torch.ones(6))


@pytest.mark.parametrize("kind", ["plain", "skewed", "nearly_bt"])
@pytest.mark.parametrize("K", [3, 5, 12])
def test_agrees_with_linear_programming_where_the_winner_is_unique(kind, K):
    """max t with sum_i x_i A_ij >= t, solved by scipy; odd games with generic payoffs have one solution."""
    for seed in range(3):
        scores = random_game(K, kind, seed).double().clamp(-20, 20)
        payoff = (torch.sigmoid(scores) - 0.5).numpy()
        result = linprog(
            c=np.r_[np.zeros(K), -1.0],
            A_ub=np.c_[-payoff.T, np.ones(K)],
            b_ub=np.zeros(K),
            A_eq=np.r_[np.ones(K), 0.0][None],
            b_eq=[1.0],
            bounds=[(0, None)] * K + [(None, None)],
        )
        assert abs(result.fun) < 1e-7
        assert np.abs(von_neumann_winner(scores).numpy() - result.x[:K]).max() < 1e-3


def test_winner_of_an_uneven_cycle_by_hand():
    """P - 1/2 = [[0, a, -b], [-a, 0, c], [b, -c, 0]] is won by (c, b, a) / (a + b + c)."""
    a, b, c = 0.4, 0.1, 0.2
    payoff = torch.tensor([[0.0, a, -b], [-a, 0.0, c], [b, -c, 0.0]])
    winner = von_neumann_winner(torch.logit(payoff + 0.5))
    torch.testing.assert_close(winner, torch.tensor([c, b, a]) / (a + b + c), atol=1e-5, rtol=0)


@pytest.mark.parametrize("K", [1, 2, 5, 64])
def test_a_group_of_ties_and_a_fair_cycle_are_won_by_the_uniform_policy(K):
    torch.testing.assert_close(von_neumann_winner(torch.zeros(K, K)), torch.full((K,), 1 / K))
    ring = torch.roll(torch.eye(K), 1, dims=-1)
    torch.testing.assert_close(von_neumann_winner(4 * (ring - ring.T)), torch.full((K,), 1 / K), atol=1e-5, rtol=0)


def test_a_condorcet_winner_takes_all_and_two_equal_winners_share():
    """Bradley-Terry, the special case: the best reward wins alone."""
    assert von_neumann_winner(bt_scores(torch.tensor([0.0, 3.0, 1.0, 2.9]))).tolist() == [0.0, 1.0, 0.0, 0.0]
    shared = von_neumann_winner(bt_scores(torch.tensor([3.0, 1.0, 3.0])))
    torch.testing.assert_close(shared, torch.tensor([0.5, 0.0, 0.5]))


ROUNDED = {  # what rounding leaves of scores between equal responses
    "two": [[0, 6e-7], [-6e-7, 0]],
    "a circle": [[0, 6e-7, -6e-7], [-6e-7, 0, 6e-7], [6e-7, -6e-7, 0]],
    "three": [[0, 6e-7, 0], [-6e-7, 0, 6e-7], [0, -6e-7, 0]],
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_decides_no_winner_and_makes_no_cycle(name):
    scores = torch.tensor(ROUNDED[name])
    K = len(scores)
    torch.testing.assert_close(von_neumann_winner(scores), torch.full((K,), 1 / K), atol=1e-6, rtol=0)
    assert cyclic_share(scores).item() == 0.0
    beside = torch.full((K + 1, K + 1), 2.0).triu(1)  # all K beat one more response
    beside[:K, :K] = scores.triu(1)
    share = von_neumann_winner(beside - beside.T)
    torch.testing.assert_close(share, torch.tensor([1 / K] * K + [0.0]), atol=1e-6, rtol=0)


def test_is_deterministic_batched_and_follows_a_permutation():
    scores = torch.stack([random_game(7, kind, 1) for kind in KINDS]).view(2, 3, 7, 7)
    policy = von_neumann_winner(scores)
    assert torch.equal(policy, von_neumann_winner(scores))
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(policy[i, j], von_neumann_winner(scores[i, j]), atol=1e-5, rtol=0)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    permuted = von_neumann_winner(scores[..., order, :][..., order])
    torch.testing.assert_close(permuted, policy[..., order], atol=1e-5, rtol=0)


def test_an_empty_batch_has_no_winners():
    assert von_neumann_winner(torch.zeros(0, 4, 4)).shape == (0, 4)


def test_precision_of_the_scores_is_kept():
    assert von_neumann_winner(CYCLE.bfloat16()).dtype == torch.float32
    assert von_neumann_winner(CYCLE.double()).dtype == torch.float64


# Hodge split.


def test_hodge_split_by_hand():
    scores = torch.tensor([[0.0, 4.0, 1.0], [-4.0, 0.0, 2.0], [-1.0, -2.0, 0.0]])
    gradient, cyclic = hodge_split(scores)  # row means 5/3, -2/3, -1; the cycle is 4 + 2 - 1 = 5 over 3
    torch.testing.assert_close(gradient[0], torch.tensor([0.0, 7 / 3, 8 / 3]))
    torch.testing.assert_close(cyclic, CYCLE * 5 / 3)
    # energies above the diagonal: 3 (5/3)^2 = 75/9 of 16 + 1 + 4 = 21
    assert cyclic_share(scores).item() == pytest.approx(75 / 9 / 21)


@some
@given(skew_matrices())
def test_hodge_parts_are_orthogonal_skew_and_add_up(scores):
    gradient, cyclic = hodge_split(scores.double())
    torch.testing.assert_close(gradient + cyclic, scores.double())
    assert torch.equal(gradient, -gradient.T)
    torch.testing.assert_close(cyclic.sum(-1), torch.zeros(len(scores), dtype=torch.float64), atol=1e-10, rtol=0)
    assert (gradient * cyclic).sum().abs() < 1e-8


@some
@given(skew_matrices())
def test_gradient_part_is_the_closest_bradley_terry_model(scores):
    """Against least squares with an explicit design matrix."""
    K = len(scores)
    design = torch.stack([torch.eye(K)[i] - torch.eye(K)[j] for i in range(K) for j in range(K)]).double()
    r = torch.linalg.pinv(design) @ scores.double().flatten()
    torch.testing.assert_close(hodge_split(scores.double())[0], bt_scores(r), atol=1e-9, rtol=1e-9)


@some
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=7))
def test_bradley_terry_has_no_cyclic_share(rewards):
    assert cyclic_share(bt_scores(torch.tensor(rewards) / 7)).item() < 1e-10


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e25])
def test_pure_cycle_is_all_cyclic_at_any_size(size):
    assert cyclic_share(size * CYCLE).item() == pytest.approx(1.0)
    assert cyclic_share(size * bt_scores(torch.arange(3.0))).item() == pytest.approx(0.0, abs=1e-10)


@some
@given(skew_matrices())
def test_cyclic_share_is_a_share_and_invariant_to_scale_and_sign(scores):
    share = cyclic_share(scores)
    assert 0 <= share <= 1
    torch.testing.assert_close(cyclic_share(-0.1 * scores), share, atol=1e-5, rtol=1e-5)


def test_cyclic_share_is_batched_and_zero_for_zeros():
    batch = torch.stack([torch.zeros(3, 3), CYCLE, bt_scores(torch.tensor([1.0, 0.0, 2.0]))])
    torch.testing.assert_close(cyclic_share(batch), torch.tensor([0.0, 1.0, 0.0]), atol=1e-10, rtol=0)


# Error messages.


def test_what_is_not_a_symmetric_game_is_refused():
    with pytest.raises(ValueError, match="skew-symmetric"):
        von_neumann_winner(torch.ones(2, 2))
    with pytest.raises(ValueError, match="must be finite"):
        von_neumann_winner(torch.tensor([[0.0, math.inf], [-math.inf, 0.0]]))
    for function in (von_neumann_winner, hodge_split, cyclic_share):
        with pytest.raises(ValueError, match=r"must be \(\.\.\., K, K\)"):
            function(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"probs must be \(\.\.\., K, K\)"):
        worst_case_win_rate(torch.ones(2, 3), torch.ones(2))
