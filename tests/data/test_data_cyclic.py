"""Cycles from ratings on several attributes, and cycles imposed on the responses of n models."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gpm.data import BadRow, Comparison, Group, PreferenceGroup, split_by_prompt
from openrlhf_gpm.data.cyclic import ULTRAFEEDBACK, attribute_cycle, cycle_comparisons, cyclic_sets, synthetic_cycle
from openrlhf_gpm.data.ratings import normalise_rated
from openrlhf_gpm.data.records import RatedGroup

CYCLE_OF_3 = [Comparison(0, 1), Comparison(1, 2), Comparison(2, 0)]


def rated(*ratings, names=ULTRAFEEDBACK, texts="ABCDEFGH"):
    """One response for each tuple of ratings, called A, B, C ..."""
    table = {name: list(values) for name, values in zip(names, zip(*ratings, strict=True), strict=True)}
    return RatedGroup("q", list(texts[: len(ratings)]), table, "id")


def test_each_comparison_of_a_cycle_is_decided_by_another_attribute():
    """A is better than B on honesty, B than C on truthfulness, C than A on helpfulness."""
    group = rated((1, 5, 1, 1), (1, 3, 5, 1), (1, 3, 2, 4))
    cycle = attribute_cycle(group, ["honesty", "truthfulness", "helpfulness"], "no_instruction_following")
    assert cycle == PreferenceGroup("q", ["A", "B", "C"], CYCLE_OF_3, "id", "no_instruction_following")


def test_the_four_sets_leave_out_one_attribute_each():
    """Only helpfulness tells the responses of `flat` apart, so every set lacks two of the attributes it needs."""
    circle = rated((5, 1, 1, 1), (1, 5, 1, 1), (1, 1, 5, 1), (1, 1, 1, 5))
    flat = rated((1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 3))
    sets = cyclic_sets(circle)
    assert {name: cycle.responses for name, cycle in sets.items()} == {
        "no_instruction_following": ["B", "C", "D"],
        "no_honesty": ["A", "C", "D"],
        "no_truthfulness": ["A", "B", "D"],
        "no_helpfulness": ["A", "B", "C"],
    }
    assert all(cycle.comparisons == CYCLE_OF_3 and cycle.subset == name for name, cycle in sets.items())
    assert cyclic_sets(flat) == dict.fromkeys(sets)


def test_one_order_on_every_attribute_holds_no_cycle():
    assert attribute_cycle(rated((3, 3, 3, 3), (2, 2, 2, 2), (1, 1, 1, 1)), ULTRAFEEDBACK[1:]) is None


def test_equal_ratings_decide_nothing():
    group = rated((2, 1, 1), (1, 2, 1), (1, 1, 1), names="xyz")
    assert attribute_cycle(group, "xyz") is None
    assert attribute_cycle(rated((2, 1, 1), (1, 2, 1), (1, 1, 2), names="xyz"), "xyz") is not None


def test_the_clearest_cycle_is_chosen():
    """A B C has leads of 1, D E F of 2; G leads by 9 where D does by 2."""
    group = rated((2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 1), (1, 3, 1), (1, 1, 3), (10, 1, 1), names="xyz")
    cycle = attribute_cycle(group, "xyz")
    assert cycle.responses == ["G", "E", "F"]
    assert attribute_cycle(rated(*[(2, 1, 1), (1, 2, 1), (1, 1, 2)] * 2, names="xyz"), "xyz").responses == [*"ABC"]


def test_responses_without_a_rating_and_equal_texts_are_left_out():
    group = rated((5, 1, 1), (None, 5, 1), (1, 5, 1), (1, 1, 5), names="xyz")
    assert attribute_cycle(group, "xyz").responses == ["A", "C", "D"]  # nobody knows whether A is better than B
    group = rated((5, 1, 1), (1, 5, None), (1, 1, 5), names="xyz")
    assert attribute_cycle(group, "xyz").responses == ["A", "B", "C"]  # a rating that no comparison needs
    assert attribute_cycle(rated((5, 1, 1), (1, None, 1), (1, 1, 5), names="xyz"), "xyz") is None
    assert attribute_cycle(rated((5, 1, 1), (1, 5, 1), (1, 1, 5), names="xyz", texts="AAB"), "xyz") is None


small = st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=3, max_size=5)


@settings(max_examples=80, deadline=None)
@given(small)
def test_the_cycle_is_the_best_of_all_orders(ratings):
    """Against every ordered choice of three responses, without cutting any short."""

    def leads(order):
        return [
            ratings[i][a] - ratings[j][a] for a, (i, j) in enumerate(zip(order, (*order[1:], order[0]), strict=True))
        ]

    orders = [o for o in permutations(range(len(ratings)), 3) if min(leads(o)) > 0]
    cycle = attribute_cycle(rated(*ratings, names="xyz"), "xyz")
    assert (cycle is None) == (orders == [])
    if cycle is not None:
        best = max(orders, key=lambda o: (min(leads(o)), sum(leads(o))))
        assert cycle.responses == ["ABCDE"[i] for i in best]


def test_more_attributes_give_longer_cycles():
    names = ["a", "b", "c", "d", "e"]
    group = rated(*[[9 if i == j else 1 for j in range(5)] for i in range(5)], names=names)
    assert attribute_cycle(group, names).comparisons == cycle_comparisons(5)
    cycles = cyclic_sets(group, names).values()
    assert {cycle.responses[0] for cycle in cycles} == {"A", "B"}
    assert all(len(cycle.responses) == 4 for cycle in cycles)


def test_what_cannot_make_a_cycle_is_refused():
    group = rated((5, 1, 1), (1, 5, 1), (1, 1, 5), names="xyz")
    with pytest.raises(BadRow, match=r"no rating of 'honesty' \(rated: x, y, z\)"):
        attribute_cycle(group, ["x", "y", "honesty"])
    with pytest.raises(ValueError, match="at least 3 attributes, got 2: x, y"):
        attribute_cycle(group, "xy")
    with pytest.raises(ValueError, match="at least 4 different attributes"):
        cyclic_sets(group, "xyz")
    with pytest.raises(ValueError, match="at least 4 different attributes"):
        cyclic_sets(group, "xyzx")
    many = RatedGroup("q", [str(i) for i in range(100)], {name: [1.0] * 100 for name in "xyz"})
    with pytest.raises(BadRow, match="100 responses have too many cycles of 3"):
        attribute_cycle(many, "xyz")


def test_ratings_of_ultrafeedback_are_numbers_in_texts():
    annotations = [
        {"honesty": {"Rating": "5", "Rationale": "r"}, "helpfulness": {"Rating": "N/A", "Type": ["1"]}},
        {"honesty": {"Rating": " 3 "}, "helpfulness": {"Rating": 2}},
        {"honesty": None, "helpfulness": 4.5},
    ]
    row = {
        "instruction": "q",
        "completions": [{"response": t, "annotations": a} for t, a in zip("ABC", annotations, strict=True)],
    }
    assert normalise_rated(row) == RatedGroup("q", [*"ABC"], {"honesty": [5, 3, None], "helpfulness": [None, 2, 4.5]})


def test_ratings_may_be_lists_for_each_attribute():
    row = {"prompt": "q", "responses": [*"AB"], "ratings": {"x": [1, None], "y": ["2", 3], "z": None}, "id": 4}
    assert normalise_rated(row) == RatedGroup("q", [*"AB"], {"x": [1, None], "y": [2, 3]}, 4)
    with pytest.raises(BadRow, match="the responses are not rated; accepted forms: instruction/completions"):
        normalise_rated({"prompt": "q", "responses": ["a"]})
    with pytest.raises(BadRow, match="'responses' has 0 responses"):
        normalise_rated(row | {"responses": []})


# synthetic cycles


@pytest.mark.parametrize("n", range(3, 9))
def test_in_a_cycle_everyone_wins_once_and_loses_once(n):
    edges = [(c.first, c.second) for c in cycle_comparisons(n)]
    assert edges == [(i, i + 1) for i in range(n - 1)] + [(n - 1, 0)]
    assert [(c.second, c.first) for c in cycle_comparisons(n, reverse=True)] == edges


@pytest.mark.parametrize("n", [3, 5, 7, 9])
def test_in_a_full_tournament_everyone_meets_everyone_once_and_wins_half(n):
    edges = [(c.first, c.second) for c in cycle_comparisons(n, full=True)]
    assert len({frozenset(edge) for edge in edges}) == len(edges) == n * (n - 1) // 2
    assert all(sum(first == i for first, _ in edges) == (n - 1) // 2 for i in range(n))
    assert all((j - i) % n <= (n - 1) // 2 for i, j in edges)  # what follows in the circle loses


@pytest.mark.parametrize("n", range(3, 7))
def test_no_ranking_gets_more_of_a_cycle_than_all_but_one(n):
    edges = [(c.first, c.second) for c in cycle_comparisons(n)]
    best = max(sum(r[i] < r[j] for i, j in edges) for r in permutations(range(n)))
    assert best == n - 1


def test_no_ranking_gets_more_than_7_of_the_10_of_a_full_tournament_of_5():
    edges = [(c.first, c.second) for c in cycle_comparisons(5, full=True)]
    assert max(sum(r[i] < r[j] for i, j in edges) for r in permutations(range(5))) == 7


def test_impossible_cycles_are_refused():
    with pytest.raises(ValueError, match="at least 3 responses, got 2"):
        cycle_comparisons(2)
    with pytest.raises(ValueError, match="odd number of responses, got 4; try 5"):
        cycle_comparisons(4, full=True)


def groups(count=200):
    return [Group(f"prompt {i}", [f"{model}{i}" for model in "ABCDE"], i) for i in range(count)]


def test_the_cycle_goes_over_the_first_n_models_of_every_prompt():
    got = [synthetic_cycle(group, 3, subset="cyc3") for group in groups(2)]
    assert got == [PreferenceGroup(f"prompt {i}", [f"A{i}", f"B{i}", f"C{i}"], CYCLE_OF_3, i, "cyc3") for i in (0, 1)]


def test_in_the_control_a_coin_turns_each_cycle():
    turned = [synthetic_cycle(group, 3, random_direction=True).comparisons != CYCLE_OF_3 for group in groups()]
    assert 70 < sum(turned) < 130
    reverse = cycle_comparisons(3, reverse=True)
    for group, is_turned in zip(groups(), turned, strict=True):
        again = synthetic_cycle(group, 3, random_direction=True)
        assert again.comparisons == (reverse if is_turned else CYCLE_OF_3)
    other = [synthetic_cycle(g, 3, random_direction=True, seed=1).comparisons != CYCLE_OF_3 for g in groups()]
    assert 70 < sum(a != b for a, b in zip(turned, other, strict=True)) < 130


def test_the_direction_says_nothing_about_the_side_of_a_split():
    cycles = [synthetic_cycle(group, 3, random_direction=True) for group in groups(2000)]
    for side in split_by_prompt(cycles, 0.5, 0):
        assert 0.45 < sum(g.comparisons == CYCLE_OF_3 for g in side) / len(side) < 0.55


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (["a", "b"], "a cycle of 3 needs 3 responses, got 2"),
        (["a", "b", "a"], "responses 0 and 2 are equal"),
        (["a", " ", "b"], r"'responses\[1\]' is an empty response"),
    ],
)
def test_a_group_that_cannot_carry_the_cycle_is_a_bad_row(responses, message):
    with pytest.raises(BadRow, match=message):
        synthetic_cycle(Group("q", responses), 3)
