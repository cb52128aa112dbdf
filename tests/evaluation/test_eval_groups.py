"""Cycles: what no ranking can exceed. Groups: cyclic share, cycle rate, agreement of selectors."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gpm.evaluation.cycles import Outcomes, best_ranking, cyclic_metrics
from openrlhf_gpm.evaluation.groups import best_responses, group_metrics, has_cycle, selector_agreement


def cycle(size):
    """Wins of a closed cycle 0 > 1 > ... > 0."""
    return np.eye(size)[[(i + 1) % size for i in range(size)]]


def regular(size):
    """Wins of a tournament in which each beats the next (size - 1) / 2."""
    return sum(np.eye(size)[[(i + d) % size for i in range(size)]] for d in range(1, (size + 1) // 2))


def bound(wins):
    return best_ranking(wins[None])[0] / wins.sum()


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_no_ranking_gets_more_than_all_but_one_edge_of_a_cycle(size):
    assert bound(cycle(size)) == pytest.approx((size - 1) / size)


def test_no_ranking_gets_more_than_seven_tenths_of_the_regular_tournament_of_five():
    assert bound(regular(5)) == pytest.approx(0.7)
    assert bound(regular(3)) == pytest.approx(2 / 3)


def test_a_ranking_is_reproduced_whole():
    assert bound(np.triu(np.ones((6, 6)), 1)) == 1


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_the_bound_is_that_of_trying_every_order(seed, size):
    wins = np.random.default_rng(seed).integers(0, 4, (3, size, size)) * (1 - np.eye(size))
    orders = [
        max(sum(group[a, b] for a, b in combinations(order, 2)) for order in permutations(range(size)))
        for group in wins
    ]
    np.testing.assert_array_equal(best_ranking(wins), orders)


def test_larger_groups_have_no_bound():
    with pytest.raises(ValueError, match="up to 8 responses, got 9"):
        best_ranking(np.zeros((1, 9, 9)))


def of(wins, right):
    better, worse = np.nonzero(wins)
    return Outcomes(len(wins), better.tolist(), worse.tolist(), right)


def test_cyclic_sets_by_hand():
    pair = Outcomes(2, [0], [1], [False])  # too small to count
    found = cyclic_metrics(
        [of(cycle(3), [True, True, False]), of(np.triu(np.ones((3, 3)), 1), [True, True, True]), pair]
    )
    assert found == {
        "groups": 2,
        "comparisons": 6,
        "accuracy": 5 / 6,
        "ranking_bound": 5 / 6,
        "cyclic_groups": 0.5,
        "without_bound": 0,
        "whole": 0.5,
    }
    assert cyclic_metrics([pair]) is None


def test_any_ranking_stays_below_the_bound():
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(200):
        rewards = rng.normal(size=5)
        better, worse = np.nonzero(regular(5))
        groups.append(Outcomes(5, better.tolist(), worse.tolist(), (rewards[better] > rewards[worse]).tolist()))
    found = cyclic_metrics(groups)
    assert found is not None
    assert found["accuracy"] <= found["ranking_bound"] == pytest.approx(0.7)
    assert found["whole"] == 0


def test_a_group_of_nine_leaves_the_bound_open_and_says_so():
    found = cyclic_metrics([of(cycle(9), [True] * 9), of(cycle(3), [True] * 3)])
    assert found is not None
    assert found["ranking_bound"] is None
    assert (found["without_bound"], found["cyclic_groups"], found["whole"]) == (1, 1.0, 1.0)


def test_a_large_group_has_a_bound_where_its_cycles_are_small():
    four_cycles = of(np.kron(np.eye(4), cycle(3)), [True] * 12)
    found = cyclic_metrics([four_cycles])
    assert found is not None
    assert (found["ranking_bound"], found["cyclic_groups"], found["without_bound"]) == (pytest.approx(2 / 3), 1, 0)
    ranked = cyclic_metrics([of(np.triu(np.ones((20, 20)), 1), [True] * 190), four_cycles])
    assert ranked is not None
    assert (ranked["ranking_bound"], ranked["cyclic_groups"]) == (pytest.approx(1 - 4 / 202), 0.5)


@given(st.integers(0, 10_000), st.integers(3, 8))
def test_the_bound_by_parts_is_that_of_the_whole_group(seed, size):
    rng = np.random.default_rng(seed)
    wins = rng.poisson(0.6 * rng.random(), (size, size)) * (1 - np.eye(size, dtype=int))
    better, worse = (np.repeat(ends, wins[np.nonzero(wins)]).tolist() for ends in np.nonzero(wins))
    found = cyclic_metrics([Outcomes(size, better, worse, [True] * len(better))])
    if found is None:
        assert len(better) < 3
        return
    assert found["ranking_bound"] == pytest.approx(best_ranking(wins[None])[0] / wins.sum())
    assert (found["cyclic_groups"] == 1) == (found["ranking_bound"] < 1)


def skew(wins, size=2.0):
    return size * (wins - wins.T)


def ladder(size):
    rewards = np.arange(size)[::-1].astype(float)
    return rewards[:, None] - rewards


def test_group_metrics_by_hand():
    """One pure cycle and one ranking of three, a pair, and a group without finite scores."""
    nan = np.full((3, 3), np.nan)
    found = group_metrics([skew(cycle(3)), ladder(3), ladder(2), nan])
    assert found is not None
    assert (found["groups"], found["smaller"], found["nan"]) == (2, 1, 1)
    assert found["shares"] == pytest.approx([1.0, 0.0])
    assert found["cyclic_share"]["mean"] == pytest.approx(0.5)
    assert found["cyclic_share"]["q50"] == pytest.approx(0.5)
    assert found["cycle_rate"] == 0.5
    assert found["no_condorcet_winner"] == 0.5
    np.testing.assert_allclose(found["selectors"]["agreement"], np.ones((4, 4)))
    assert found["selectors"]["single_best"] == [0.5] * 4
    assert group_metrics([ladder(2), nan]) is None


def test_groups_of_several_sizes_keep_their_order():
    shares = group_metrics([ladder(4), skew(cycle(3)), ladder(5), skew(cycle(4))])["shares"]
    assert shares == pytest.approx([0, 1, 0, 1])


def test_a_tie_is_not_an_arrow():
    assert not has_cycle(torch.zeros(3, 3))
    assert has_cycle(torch.tensor(skew(cycle(3))))
    assert not has_cycle(torch.tensor(skew(cycle(4))))  # a 4-cycle with ties across has no 3-cycle
    inside = np.zeros((5, 5))
    inside[np.ix_([0, 2, 4], [0, 2, 4])] = skew(cycle(3))
    assert has_cycle(torch.tensor(inside))


def test_selectors_disagree_where_theory_says_so():
    """0 beats 1 and 2 narrowly; 1 beats 2 by far: 1 has the best mean, 0 is the Condorcet winner."""
    scores = np.array([[0, 0.1, 0.1], [-0.1, 0, 8], [-0.1, -8, 0]])
    best = best_responses(torch.tensor(scores)[None])[:, 0]
    assert [row.nonzero().flatten().tolist() for row in best] == [[1], [1], [0], [0]]
    found = group_metrics([scores])
    assert found is not None
    assert found["selectors"]["names"] == ["mean score", "Borda", "Copeland", "von Neumann"]
    assert found["selectors"]["agreement"] == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert found["no_condorcet_winner"] == 0


def test_tied_selectors_agree_by_what_both_name():
    best = torch.tensor([[[True, True, False]], [[True, False, False]], [[False, False, True]]])
    expected = torch.tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(selector_agreement(best)[..., 0], expected)
