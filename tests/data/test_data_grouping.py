"""Merging by prompt, splitting by prompt, and taking groups apart."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gpm.data import Comparison, PreferenceGroup, merge_prompts, split_by_prompt
from openrlhf_gpm.data.grouping import as_pairs


def pair(prompt, first, second, label=1.0, **others):
    return PreferenceGroup(prompt, [first, second], [Comparison(0, 1, label)], **others)


def user(text):
    return [{"role": "user", "content": text}]


def judgements(groups):
    """Who beats whom with what probability, prompt by prompt, as a multiset."""
    return Counter(
        (str(g.prompt), g.responses[c.first], g.responses[c.second], c.label) for g in groups for c in g.comparisons
    )


def test_the_pairs_of_a_cycle_become_one_group():
    rows = [pair("q", "a", "b", id=1), pair("other", "x", "y"), pair("q", "b", "c", 0.75, id=2), pair("q", "c", "a")]
    assert merge_prompts(rows) == [
        PreferenceGroup("q", ["a", "b", "c"], [Comparison(0, 1), Comparison(1, 2, 0.75), Comparison(2, 0)], 1),
        PreferenceGroup("other", ["x", "y"], [Comparison(0, 1)]),
    ]


def test_groups_merge_with_pairs_and_keep_margins_and_log_odds():
    group = PreferenceGroup("q", ["a", "b", "c"], [Comparison(0, 2, 0.5, 1.0, 0.25)])
    assert merge_prompts([pair("q", "c", "d"), group]) == [
        PreferenceGroup("q", ["c", "d", "a", "b"], [Comparison(0, 1), Comparison(2, 0, 0.5, 1.0, 0.25)])
    ]


def test_repeated_judgements_stay():
    (merged,) = merge_prompts([pair("q", "a", "b"), pair("q", "b", "a"), pair("q", "a", "b")])
    assert merged.comparisons == [Comparison(0, 1), Comparison(1, 0), Comparison(0, 1)]


def test_a_subset_stays_where_all_rows_share_it():
    assert merge_prompts([pair("q", "a", "b", subset="s"), pair("q", "b", "c", subset="s")])[0].subset == "s"
    assert merge_prompts([pair("q", "a", "b", subset="s"), pair("q", "b", "c", subset="t")])[0].subset is None


def test_a_text_is_the_prompt_that_one_user_message_is():
    assert len(merge_prompts([pair("q", "a", "b"), pair(user("q"), "b", "c")])) == 1
    assert len(merge_prompts([pair("q", "a", "b"), pair([*user("s"), *user("q")], "b", "c")])) == 2


def test_whole_texts_without_a_prompt_are_not_thrown_together():
    assert len(merge_prompts([pair("", "a", "b"), pair("", "c", "d"), pair("", "b", "a")])) == 2


prompts = st.sampled_from(["p", "q", "r", "ü"])
responses = st.lists(st.sampled_from("abcdef"), min_size=2, max_size=2, unique=True)
rows = st.lists(st.builds(lambda p, r, x: pair(p, *r, x), prompts, responses, st.sampled_from([1, 0.5, 0.2])))


@settings(max_examples=60, deadline=None)
@given(rows)
def test_merging_loses_no_comparison_and_stores_each_response_once(rows):
    merged = merge_prompts(rows)
    assert judgements(merged) == judgements(rows)
    assert [g.prompt for g in merged] == list(dict.fromkeys(g.prompt for g in rows))
    assert all(len(set(g.responses)) == len(g.responses) for g in merged)
    assert merge_prompts(merged) == merged


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 5), st.randoms())
def test_a_prompt_is_on_one_side_whatever_the_order_of_the_rows(rows, seed, shuffler):
    train, held_out = split_by_prompt(rows, 0.5, seed)
    assert judgements(train) + judgements(held_out) == judgements(rows)
    sides = {g.prompt: side for side, groups in enumerate((train, held_out)) for g in groups}
    assert not {g.prompt for g in train} & {g.prompt for g in held_out}
    shuffled = shuffler.sample(rows, len(rows))
    for side, groups in enumerate(split_by_prompt(shuffled, 0.5, seed)):
        assert all(sides[g.prompt] == side for g in groups)
    assert merge_prompts(train) == split_by_prompt(merge_prompts(rows), 0.5, seed)[0]  # before or after merging


def test_about_the_fraction_is_held_out_and_more_of_it_adds_prompts_only():
    rows = [pair(f"prompt {i}", "a", "b") for i in range(4000)]
    held = [{g.prompt for g in split_by_prompt(rows, fraction, 0)[1]} for fraction in (0.05, 0.1, 0.5)]
    assert [len(prompts) / 4000 for prompts in held] == pytest.approx([0.05, 0.1, 0.5], abs=0.02)
    assert all(few <= many for few, many in pairwise(held))


def test_another_seed_holds_out_other_prompts():
    rows = [pair(f"prompt {i}", "a", "b") for i in range(1000)]
    held = [{g.prompt for g in split_by_prompt(rows, 0.5, seed)[1]} for seed in (0, 1)]
    assert 150 < len(held[0] & held[1]) < 350


def test_the_side_of_a_prompt_does_not_change_between_versions():
    """Numbers of the first version: files that were split then can still be joined with files split now."""
    rows = [pair(f"prompt {i}", "a", "b") for i in range(12)]
    assert [g.prompt.split()[1] for g in split_by_prompt(rows, 0.3, 0)[1]] == ["2", "3", "7", "8"]


def test_whole_texts_are_split_row_by_row_in_either_order():
    rows = [pair("", f"text {i}", f"other {i}") for i in range(1000)]
    turned = [pair("", f"other {i}", f"text {i}") for i in range(1000)]
    train, held_out = split_by_prompt(rows + turned, 0.5)
    assert 850 < len(train) < 1150
    assert not {frozenset(g.responses) for g in train} & {frozenset(g.responses) for g in held_out}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_lies_between_0_and_1(fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and below 1"):
        split_by_prompt([], fraction)


def test_a_group_comes_apart_into_pairs_with_the_likelier_winner_first():
    comparisons = [Comparison(0, 1), Comparison(2, 0, 0.25, 1.0, -1.5), Comparison(1, 2, 0.5)]
    got = list(as_pairs(PreferenceGroup("q", ["a", "b", "c"], comparisons, "g", "s")))
    assert got == [
        PreferenceGroup("q", ["a", "b"], [Comparison(0, 1)], "g-0", "s"),
        PreferenceGroup("q", ["a", "c"], [Comparison(0, 1, 0.75, -1.0, 1.5)], "g-1", "s"),
        PreferenceGroup("q", ["b", "c"], [Comparison(0, 1, 0.5)], "g-2", "s"),
    ]
    assert list(as_pairs(got[0])) == [got[0]]


def test_pairs_of_a_merged_file_are_the_pairs_before():
    shuffler = random.Random(0)
    rows = [pair(f"p{shuffler.randrange(5)}", *shuffler.sample("abcd", 2)) for _ in range(50)]
    assert judgements(p for g in merge_prompts(rows) for p in as_pairs(g)) == judgements(rows)
