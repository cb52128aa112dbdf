"""Evaluation data: rows of every form, merged into the groups that are scored, and back."""

import json
import math

import numpy as np
import pytest

from openrlhf_gpm.data import Comparison, PairKeys, PreferenceGroup
from openrlhf_gpm.evaluation.dataset import (
    Dataset,
    comparisons,
    merged,
    outcomes,
    outcomes_by_subset,
    read_dataset,
    rewardbench2_items,
    to_group,
)


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


CYCLE = (
    pair("Name a prime.", "7", "9", subset="a", id="x"),
    pair("Say hello.", "Hello.", "No."),
    pair([{"role": "user", "content": "Name a prime."}], "9", "Two.", subset="b", label=0.8),
    pair("Name a prime.", "Two.", "7", subset="a"),
)


def test_rows_of_one_prompt_are_scored_as_one_group(write):
    data = read_dataset(write(*CYCLE))
    assert [row.subset for row in data.rows] == ["a", None, "b", "a"]
    assert [group.responses for group in data.groups] == [["7", "9", "Two."], ["Hello.", "No."]]
    assert data.places == [(0, [0, 1]), (1, [0, 1]), (0, [1, 2]), (0, [2, 0])]
    assert data.skipped is None


def test_rows_can_be_kept_apart(write):
    data = read_dataset(write(*CYCLE), merge=False)
    assert data.groups == data.rows
    assert data.places == [(i, [0, 1]) for i in range(4)]


SCORES = [np.array([[0, 1.0, -3], [-1, 0, 2], [3, -2, 0]]), np.array([[0, -5.0], [5, 0]])]


def test_each_comparison_finds_its_score_its_label_its_prompt_and_its_subset(write):
    table = comparisons([read_dataset(write(*CYCLE))], [SCORES])
    np.testing.assert_array_equal(table.scores, [1, -5, 2, 3])
    np.testing.assert_array_equal(table.labels, [1, 1, 0.8, 1])
    np.testing.assert_array_equal(table.prompts, [0, 1, 0, 0])
    assert table.subsets == ["a", None, "b", "a"]


def test_merging_changes_no_comparison(write):
    """Scores from one reward of each text: the table is the same with and without groups."""

    def scores(data):
        rewards = [np.array([float(len(text)) for text in group.responses]) for group in data.groups]
        return [r[:, None] - r for r in rewards]

    path = write(*CYCLE)
    together, apart = read_dataset(path), read_dataset(path, merge=False)
    a, b = comparisons([together], [scores(together)]), comparisons([apart], [scores(apart)])
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.prompts, b.prompts)


def test_the_same_prompt_in_two_files_is_one_prompt(write):
    first = read_dataset(write(CYCLE[0], CYCLE[1], name="1.jsonl"))
    second = read_dataset(write(CYCLE[3], name="2.jsonl"))
    pairs = [np.array([[0, 1.0], [-1, 0]])]
    assert list(comparisons([first, second], [pairs * 2, pairs]).prompts) == [0, 1, 0]


def test_a_cycle_over_rows_is_seen_in_its_group(write):
    data = read_dataset(write(*CYCLE))
    whole, other = outcomes([data], [SCORES])
    assert (whole.size, whole.better, whole.worse, whole.right) == (3, [0, 1, 2], [1, 2, 0], [True, True, True])
    assert (other.size, other.right) == (2, [False])
    by_subset = outcomes_by_subset([data], [SCORES])
    assert list(by_subset) == ["a", "b"]
    assert (by_subset["a"][0].better, by_subset["a"][0].worse) == ([0, 2], [1, 0])
    only_b = by_subset["b"][0]
    assert (only_b.better, only_b.worse) == ([1], [2])


def test_outcomes_turn_labels_below_one_half_and_drop_ties_of_the_label():
    group = PreferenceGroup("p", ["a", "b", "c"], [Comparison(0, 1, 0.2), Comparison(1, 2, 0.5), Comparison(0, 2)])
    data = Dataset("d", "d", [group], [group], [(0, [0, 1, 2])])
    scores = np.array([[0, -1, math.nan], [1, 0, 1], [math.nan, -1, 0]])
    found = outcomes([data], [[scores]])[0]
    assert (found.better, found.worse, found.right) == ([1, 0], [0, 2], [True, False])


# Forms


def test_responses_without_labels_are_a_group_without_comparisons():
    group = to_group({"prompt": "p", "responses": ["a", "b", "c"], "models": ["x", "y", "z"], "subset": "s"})
    assert (group.responses, group.comparisons, group.subset) == (["a", "b", "c"], [], "s")
    scored = to_group({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]})
    assert [(c.first, c.second) for c in scored.comparisons] == [(1, 0)]


def test_other_column_names(write):
    path = write({"q": "p", "good": "a", "bad": "b"})
    group = read_dataset(path, PairKeys("q", "good", "bad")).rows[0]
    assert (group.prompt, group.responses) == ("p", ["a", "b"])


def test_a_dataset_by_name_is_read_from_its_published_split():
    with pytest.raises(ValueError, match="allenai/reward-bench:filtered"):  # offline: it is asked for by that name
        read_dataset("allenai/reward-bench")


# Bad rows


def test_a_bad_row_is_refused_by_name_or_counted(write):
    path = write(CYCLE[1], {"prompt": "p"}, pair("p", "a", "a"))
    with pytest.raises(ValueError, match=r"data\.jsonl:2: column 'chosen' is missing"):
        read_dataset(path)
    data = read_dataset(path, bad_rows="skip")
    assert len(data.rows) == 1
    assert data.skipped is not None
    assert data.skipped.startswith("2 of 3 rows skipped: ")
    assert "data.jsonl:3" in data.skipped


def test_a_file_of_bad_rows_is_an_error(write):
    with pytest.raises(ValueError, match=r"nothing to evaluate: 1 of 1 rows skipped"):
        read_dataset(write({"prompt": "p"}), bad_rows="skip")


def test_a_row_that_one_model_cannot_encode_is_left_out_for_all(write, chat_tokenizer):
    from openrlhf_gpm.samples.formatting import Formatter

    path = write(CYCLE[1], pair("Hello, how are you? " * 30, "Fine.", "No."))
    formatters = {
        "long": Formatter(chat_tokenizer, chat_template=True),
        "short": Formatter(chat_tokenizer, chat_template=True, max_len=40),
    }
    assert len(read_dataset(path, formatters={"long": formatters["long"]}).rows) == 2
    with pytest.raises(ValueError, match=r"data\.jsonl:2: model short: the prompt has \d+ tokens"):
        read_dataset(path, formatters=formatters)
    data = read_dataset(path, bad_rows="skip", formatters=formatters)
    assert len(data.rows) == 1
    assert "1 not encodable (" in str(data.skipped)


def test_max_rows_takes_the_first(write):
    assert [row.prompt for row in read_dataset(write(*CYCLE), max_rows=2).rows] == ["Name a prime.", "Say hello."]


# RewardBench 2


def best_of_4(subset="Math", **more):
    return {"prompt": "p", "chosen": ["r"], "rejected": ["w1", "w2", "w3"], "subset": subset, **more}


def test_items_of_rewardbench_2_and_their_standing(write):
    tie = {"prompt": "q", "chosen": ["r1", "r2"], "rejected": ["w"], "subset": "Ties", "id": "tied:1"}
    data = read_dataset(write(best_of_4(id="m1"), tie, pair("z", "a", "b", subset="Math")))
    rewards = [np.array([3.0, 0, 1, 2]), np.array([5.0, 4, 0]), np.array([1.0, 0])]
    (math_, ties), not_items = rewardbench2_items([data], [[r[:, None] - r for r in rewards]])
    assert not_items == 1  # the pair, although its subset is Math
    assert (math_.id, math_.subset, ties.id) == ("m1", "Math", "tied:1")
    # For a Bradley-Terry model the standing is the reward, up to a constant of the group: gaps are those of rewards.
    assert math_.right[0] - math_.wrong[2] == pytest.approx(1.0)
    assert ties.right[1] - ties.wrong[0] == pytest.approx(4.0)
    assert ties.right[0] - ties.right[1] == pytest.approx(1.0)


def test_the_standing_may_be_a_win_rate(write):
    """A loses narrowly to B and C, B beats D narrowly ... by scores A is best, by win rates it is not."""
    scores = np.array([[0, -0.1, -0.1, 9], [0.1, 0, 0, 0.1], [0.1, 0, 0, 0.1], [-9, -0.1, -0.1, 0]])
    data = read_dataset(write(best_of_4()))
    assert rewardbench2_items([data], [[scores]])[0][0].right[0] == pytest.approx(8.8 / 4)
    rate = rewardbench2_items([data], [[scores]], win_rate=True)[0][0]
    assert rate.right[0] == pytest.approx((0.5 + 2 / (1 + np.exp(0.1)) + 1 / (1 + np.exp(-9))) / 4)


def test_items_keep_their_own_group_when_prompts_are_merged(write):
    """The same prompt in two subsets: each item is ranked among its own four answers."""
    other = best_of_4("Focus") | {"chosen": ["r9"]}
    data = read_dataset(write(best_of_4(), other))
    assert [len(group.responses) for group in data.groups] == [5]
    rewards = np.array([3.0, 0, 1, 2, 50])
    (first, second), _ = rewardbench2_items([data], [[rewards[:, None] - rewards]])
    assert first.right[0] == pytest.approx(3 - 6 / 4)
    assert second.right[0] == pytest.approx(50 - 53 / 4)


def test_pairs_of_whole_texts_are_not_one_prompt():
    rows = [PreferenceGroup("", ["a", "b"], [Comparison(0, 1)]), PreferenceGroup("", ["c", "d"], [Comparison(0, 1)])]
    groups, places = merged(rows)
    assert len(groups) == 2
    assert places == [(0, [0, 1]), (1, [0, 1])]
