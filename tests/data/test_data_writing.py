"""What is written is read back as the same groups, and appears only when it is complete."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gpm.data import Comparison, PreferenceGroup, normalise_preference, read_preferences, write_groups
from openrlhf_gpm.data.writing import to_row


def test_a_pair_is_written_as_a_pair():
    group = PreferenceGroup("q", ["a", "b"], [Comparison(0, 1, 0.75, 1.0)], 3, "s")
    pair = {"id": 3, "subset": "s", "prompt": "q", "chosen": "a", "rejected": "b", "label": 0.75, "margin": 1.0}
    assert to_row(group) == pair
    assert to_row(PreferenceGroup("", ["a", "b"], [Comparison(0, 1)])) == {
        "prompt": "",
        "chosen": "a",
        "rejected": "b",
    }


def test_the_responses_of_a_pair_are_messages_where_its_prompt_is():
    prompt = [{"role": "user", "content": "q"}]
    row = to_row(PreferenceGroup(prompt, ["a", "b"], [Comparison(0, 1)]))
    answers = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "a"), ("rejected", "b"))}
    assert row == {"prompt": prompt} | answers


def test_a_group_is_written_with_its_comparisons():
    comparisons = [Comparison(0, 1), Comparison(2, 0, 0.5), Comparison(1, 2, 0.9, 0.0, 2.0)]
    row = to_row(PreferenceGroup("q", ["a", "b", "c"], comparisons))
    assert row["comparisons"] == [[0, 1], [2, 0, 0.5], {"first": 1, "second": 2, "label": 0.9, "log_odds": 2.0}]
    assert "comparisons" in to_row(PreferenceGroup("q", ["a", "b"], [Comparison(1, 0)]))
    assert "comparisons" in to_row(PreferenceGroup("q", ["a", "b"], [Comparison(0, 1), Comparison(0, 1)]))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
users = texts.map(lambda text: [{"role": "user", "content": text, "name": "n"}])
finite = st.floats(-1e6, 1e6)


def _comparison(ends, label, margin, log_odds):
    """Margin and log-odds on the side of the label."""
    side = (label > 0.5) - (label < 0.5)
    log_odds = None if log_odds is None else abs(log_odds) * side
    return Comparison(*ends, label, abs(margin) * side, log_odds)


@st.composite
def preference_groups(draw):
    responses = draw(st.lists(texts, min_size=2, max_size=4, unique=True))
    ends = st.permutations(range(len(responses))).map(lambda order: order[:2])
    comparison = st.builds(_comparison, ends, st.floats(0, 1), finite, st.none() | finite)
    return PreferenceGroup(
        draw(st.just("") | texts | users),
        responses,
        draw(st.lists(comparison, min_size=1, max_size=4)),
        draw(st.none() | st.integers() | texts),
        draw(st.none() | texts),
    )


@settings(max_examples=100, deadline=None)
@given(preference_groups())
def test_a_group_survives_the_file(group):
    assert normalise_preference(json.loads(json.dumps(to_row(group)))) == group


def test_a_file_of_groups_is_read_back(tmp_path):
    path = tmp_path / "out.jsonl"
    groups = [
        PreferenceGroup("é\u2028\n", ["a\r\n", "b"], [Comparison(0, 1)]),
        PreferenceGroup([{"role": "user", "content": "q"}], ["a", "b", "c"], [Comparison(2, 1, 0.5)], "id"),
    ]
    assert write_groups(path, iter(groups)) == 2
    assert [group for _, group in read_preferences(path)] == groups
    assert path.read_bytes().count(b"\n") == 2
    assert list(tmp_path.iterdir()) == [path]
