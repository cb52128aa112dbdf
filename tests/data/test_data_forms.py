"""Every accepted form of preference data becomes the same `PreferenceGroup`."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gpm.data import BadRow, Comparison, PairKeys, PreferenceGroup, normalise_group, normalise_preference
from openrlhf_gpm.data.groups import form_title

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
TIE = 0.5


def assistant(text):
    return {"role": "assistant", "content": text}


def group(*comparisons, responses=("4", "5", "6"), prompt="2 + 2?", **others):
    return PreferenceGroup(prompt, list(responses), [Comparison(*c) for c in comparisons], **others)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "chosen": "4", "rejected": "5"},
        {"prompt": PROMPT, "chosen": [assistant("4")], "rejected": [assistant("5")]},
        {"chosen": [*PROMPT, assistant("4")], "rejected": [*PROMPT, assistant("5")]},
        {"instruction": PROMPT, "chosen": {"response": "4"}, "reject": {"response": "5"}},
        {"system": "Be brief.", "prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"system": "Be brief.", "prompt": PROMPT, "chosen": "4", "rejected": "5"},
        {"system": "Be brief.", "prompt": PROMPT[1:], "chosen": "4", "rejected": "5"},
        {"prompt": PROMPT, "responses": ["4", "5"], "scores": [1.5, -2]},
        {"prompt": PROMPT, "completions": ["4", "5"], "ranks": [1, 2]},
        {"prompt": PROMPT, "completions": [[assistant("4")], [assistant("5")]], "ranks": [1, 2]},
        {"prompt": PROMPT, "responses": [{"response": "4"}, "5"], "comparisons": [[0, 1]]},
        {"prompt": PROMPT, "chosen": ["4"], "rejected": ["5"], "num_correct": 1, "total_completions": 2},
        {"prompt": PROMPT, "responses": ["4", "5"], "ratings": {"help": [5, 1], "style": [1, 4]}},
        {"prompt": PROMPT, "chosen": "4", "rejected": "5", "responses": ["x", "y"], "scores": [1, 2]},
    ],
)
def test_two_responses_become_one_comparison_in_every_form(row):
    assert normalise_preference(row) == PreferenceGroup(PROMPT, ["4", "5"], [Comparison(0, 1)])


def test_every_pair_of_scores_is_compared_the_higher_first():
    row = {"prompt": "2 + 2?", "responses": ["4", "5", "6"], "scores": [2, 7.5, 2]}
    assert normalise_preference(row) == group((1, 0), (0, 2, TIE), (1, 2))


def test_rank_1_is_the_best_and_equal_ranks_tie():
    row = {"prompt": "2 + 2?", "responses": ["4", "5", "6"], "ranks": [2, 1, 2]}
    assert normalise_preference(row) == group((1, 0), (0, 2, TIE), (1, 2))


numbers = st.lists(st.integers(-3, 3) | st.floats(-3, 3), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(numbers)
def test_ranks_are_scores_with_the_sign_turned(values):
    base = {"prompt": "p", "responses": [str(i) for i in range(len(values))]}
    scored = normalise_preference(base | {"scores": values})
    assert scored == normalise_preference(base | {"ranks": [-value for value in values]})
    assert len(scored.comparisons) == len(values) * (len(values) - 1) // 2
    for c in scored.comparisons:
        assert (values[c.first] > values[c.second]) if c.label == 1 else (values[c.first] == values[c.second])


def test_comparisons_may_be_short_or_say_all():
    said = [
        [0, 1],
        [2, 1, 0.25],
        [1.0, 2.0, None],
        {"first": 0, "second": 2, "label": 0.9, "margin": 1, "log_odds": 2},
    ]
    row = {"prompt": "2 + 2?", "responses": ["4", "5", "6"], "comparisons": said}
    assert normalise_preference(row) == group((0, 1), (2, 1, 0.25), (1, 2), (0, 2, 0.9, 1.0, 2.0))


def test_of_several_kinds_of_knowledge_comparisons_come_first_then_scores():
    row = {"prompt": "2 + 2?", "responses": ["4", "5", "6"], "scores": [3, 2, 1], "ranks": [3, 2, 1]}
    assert normalise_preference(row).comparisons[0] == Comparison(0, 1)
    assert normalise_preference(row | {"comparisons": [[2, 0]]}) == group((2, 0))


def test_rewardbench_2_compares_every_chosen_with_every_rejected_response():
    row = {
        "id": "7",
        "prompt": "2 + 2?",
        "chosen": ["4", "four"],
        "rejected": ["5", "6", "7"],
        "num_correct": 2,
        "total_completions": 5,
        "models": ["a", "b"],
        "subset": "Ties",
    }
    edges = [(i, j) for i in (0, 1) for j in (2, 3, 4)]
    expected = group(*edges, responses=["4", "four", "5", "6", "7"], id="7", subset="Ties")
    assert normalise_preference(row) == expected
    assert normalise_preference(row | {"chosen": "4"}).comparisons == [Comparison(0, j) for j in (1, 2, 3)]


def test_rewardbench_keeps_id_and_subset():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_model": "m", "rejected_model": "n"}
    got = normalise_preference(row | {"subset": "hep-python", "id": 3})
    assert got == PreferenceGroup("p", ["a", "b"], [Comparison(0, 1)], 3, "hep-python")
    assert normalise_preference(row | {"subset": 4}).subset == "4"


def ultrafeedback(*ratings):
    """One response for each tuple of ratings of instruction_following and honesty."""
    names = ("instruction_following", "honesty")
    completions = [
        {
            "model": f"m{i}",
            "response": str(4 + i),
            "overall_score": 10.0,
            "annotations": {
                name: {"Rating": value, "Rationale": "because"} for name, value in zip(names, values, strict=True)
            },
        }
        for i, values in enumerate(ratings)
    ]
    return {"source": "sharegpt", "instruction": "2 + 2?", "models": [], "completions": completions}


def test_ultrafeedback_is_ordered_by_the_mean_of_its_ratings():
    row = ultrafeedback(("5", "3"), ("4", "5"), ("5", "3"))  # means 4, 4.5, 4
    assert normalise_preference(row) == group((1, 0), (0, 2, TIE), (1, 2))


def test_an_attribute_that_one_response_is_not_rated_on_decides_nothing():
    row = ultrafeedback(("5", "1"), ("4", "N/A"), ("3", "5"))
    assert normalise_preference(row) == group((0, 1), (0, 2), (1, 2))


def test_a_dialogue_of_hh_rlhf_is_cut_before_its_last_answer():
    lead = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2 + 2?\n\nAssistant:"
    assert normalise_preference({"chosen": lead + " 4", "rejected": lead + " 5"}) == PreferenceGroup(
        lead, [" 4", " 5"], [Comparison(0, 1)]
    )
    other = normalise_preference({"chosen": lead + " 4", "rejected": lead + " 5\n\nHuman: No\n\nAssistant: Oh"})
    assert other.prompt == ""
    with pytest.raises(BadRow, match="'rejected' is an empty response"):
        normalise_preference({"chosen": lead + " 4", "rejected": lead})


def test_what_is_known_of_lists_holds_for_each_of_their_pairs():
    row = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "label": 0.7, "margin": 2}
    assert normalise_preference(row).comparisons == [Comparison(0, 2, 0.7, 2.0), Comparison(1, 2, 0.7, 2.0)]


def test_a_system_column_is_the_first_message_of_every_form():
    row = {"system": "Be brief.", "prompt": "2 + 2?", "responses": ["4", "5"]}
    assert normalise_group(row).prompt == normalise_preference(row | {"scores": [1, 0]}).prompt == PROMPT
    with pytest.raises(BadRow, match="cannot have a 'system' column"):
        normalise_preference({"system": "Be brief.", "chosen": "Human: hi 4", "rejected": "Human: hi 5"})


def test_log_odds_give_the_label_that_belongs_to_them():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "log_odds": math.log(3)}
    (c,) = normalise_preference(row).comparisons
    assert c == Comparison(0, 1, pytest.approx(0.75), 0.0, math.log(3))
    (c,) = normalise_preference(row | {"label": 1}).comparisons
    assert (c.label, c.log_odds) == (1.0, math.log(3))
    assert [normalise_preference(row | {"log_odds": x}).comparisons[0].label for x in (-1e9, 1e9)] == [0.0, 1.0]


def test_columns_of_a_pair_and_of_a_group_can_have_other_names():
    keys = PairKeys(prompt="question", chosen="better", rejected="worse")
    row = {"question": "Q", "better": "a", "worse": "b", "prompt": "no", "chosen": "no", "rejected": "nor"}
    assert normalise_preference(row, keys) == PreferenceGroup("Q", ["a", "b"], [Comparison(0, 1)])
    scored = {"question": "Q", "prompt": "no", "responses": ["a", "b"], "scores": [2, 1]}
    assert normalise_preference(scored, keys) == PreferenceGroup("Q", ["a", "b"], [Comparison(0, 1)])


def test_values_of_numpy_and_null_fields_of_parquet_become_plain_python():
    row = {
        "prompt": np.array([{"role": "user", "content": "2 + 2?", "name": None}], dtype=object),
        "responses": np.array(["4", "5", "6"], dtype=object),
        "scores": np.array([1.0, 2.0, 2.0], dtype=np.float32),
        "id": np.int64(3),
        "subset": np.str_("s"),
    }
    got = normalise_preference(row)
    assert got == group((1, 0), (2, 0), (1, 2, TIE), prompt=[{"role": "user", "content": "2 + 2?"}], id=3, subset="s")
    assert (type(got.id), type(got.subset)) == (int, str)
    label = normalise_preference({"prompt": "p", "chosen": "a", "rejected": "b", "label": np.float64(0.25)})
    assert type(label.comparisons[0].label) is float


def test_equal_responses_that_tie_are_not_compared():
    row = {"prompt": "2 + 2?", "responses": ["4", "4", "5"], "scores": [2, 2, 1]}
    assert normalise_preference(row) == group((0, 2), (1, 2), responses=["4", "4", "5"])


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
THREE = {"prompt": "p", "responses": ["a", "b", "c"]}
LISTS = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"]}


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ([PAIR], "not an object", "expected a JSON object, got a list; accepted forms"),
        (None, "not an object", "expected a JSON object, got null"),
        ({}, "missing column", r"column 'chosen' is missing \(there is: nothing\); accepted forms"),
        ({"prompt": "p", "chosen": "a"}, "missing column", r"'rejected' is missing \(there is: prompt, chosen\)"),
        ({"prompt": "p", "completion": "a", "label": True}, "missing column", "'chosen' is missing"),
        (THREE, "missing column", "the responses are not compared: one of scores, ranks, comparisons"),
        ({"responses": ["a", "b"], "ranks": [1, 2]}, "missing column", "column 'prompt' is missing"),
        (PAIR | {"chosen": " "}, "empty response", "'chosen' is an empty response"),
        (PAIR | {"rejected": "a"}, "equal responses", "are equal, so neither can be preferred"),
        (PAIR | {"label": 1.01}, "label outside", r"'label' must be in \[0, 1\], .* got 1.01"),
        (PAIR | {"label": math.nan}, "not a finite number", "'label' must be a finite number, got nan"),
        (PAIR | {"label": 10**400}, "not a finite number", "'label' must be a finite number, got 10000"),
        (PAIR | {"label": [0.5]}, "not a finite number", "'label' must be a finite number, got a list"),
        (PAIR | {"log_odds": math.inf}, "not a finite number", "'log_odds' must be a finite number"),
        (PAIR | {"id": math.nan}, "not JSON", "'id' cannot be written as JSON"),
        (PAIR | {"id": "\ud800"}, "not JSON", "'id' cannot be written as JSON"),
        (PAIR | {"subset": ["s"]}, "wrong type", "'subset' must be text, got a list"),
        (PAIR | {"system": 3}, "wrong type", "'system' must be text"),
        (PAIR | {"system": "x", "prompt": PROMPT}, "wrong roles", "the 'system' column and the prompt's system"),
        (PAIR | {"prompt": [{"role": "user", "content": "p", "x": {1}}]}, "not JSON", r"'prompt'\[0\] cannot be wri"),
        (PAIR | {"prompt": [{"role": "\ud800", "content": "p"}]}, "broken text", r"'role' of 'prompt'\[0\] has half"),
        (PAIR | {"chosen": {"text": "a"}}, "wrong type", r"'chosen'\[0\] must be a message"),
        (PAIR | {"chosen": b"a"}, "wrong type", "'chosen' must be text or a list of messages, got bytes"),
        (LISTS | {"rejected": []}, "group size", "'rejected' has 0 responses; give 1 to 1000"),
        (LISTS | {"rejected": ["b"]}, "equal responses", "responses 1 and 2 are equal, but one is preferred"),
        (LISTS | {"rejected": [""]}, "empty response", r"'rejected\[0\]' is an empty response"),
        (LISTS | {"prompt": None}, "missing column", "column 'prompt' is missing"),
        (
            THREE | {"scores": [1, 2]},
            "wrong type",
            "'scores' must be a list of 3 numbers, one per response, got 2",
        ),
        (THREE | {"scores": "abc"}, "wrong type", "'scores' must be a list of 3 numbers.* got text"),
        (THREE | {"scores": [1, None, 2]}, "not a finite number", r"'scores\[1\]' must be a finite number, got None"),
        (THREE | {"ranks": [1, 2, "3"]}, "not a finite number", r"'ranks\[2\]' must be a finite number, got '3'"),
        (
            THREE | {"responses": "abc", "ranks": [1, 2, 3]},
            "wrong type",
            "'responses' must be a list of texts, got te",
        ),
        (THREE | {"responses": ["a"], "ranks": [1]}, "no comparison", "no two different responses are compared"),
        (THREE | {"responses": ["a", "a"], "ranks": [1, 1]}, "no comparison", "no two different responses"),
        (THREE | {"responses": ["a", "a"], "ranks": [1, 2]}, "equal responses", "responses 0 and 1 are equal"),
        (THREE | {"responses": ["a", "", "b"], "ranks": [1, 2, 3]}, "empty response", r"'responses\[1\]' is an empty"),
        (THREE | {"responses": ["a"] * 1001, "ranks": [1] * 1001}, "group size", "has 1001 responses; give 1 to 1000"),
        (
            THREE | {"responses": [[*PROMPT, assistant("4")], "b", "c"], "ranks": [1, 2, 3]},
            "wrong type",
            r"'responses\[0\]' is a conversation; leave only the last assistant message",
        ),
        (THREE | {"comparisons": {"0": 1}}, "wrong type", "'comparisons' must be a list .*, got an object"),
        (THREE | {"comparisons": []}, "no comparison", "no two different responses are compared"),
        (THREE | {"comparisons": [[0, 1], [0, 3]]}, "wrong index", r"'comparisons'\[1\] names response 3; .* 0 to 2"),
        (THREE | {"comparisons": [[0, -1]]}, "wrong index", "names response -1"),
        (THREE | {"comparisons": [[0, 0.5]]}, "wrong index", "names response 0.5"),
        (THREE | {"comparisons": [[0, math.nan]]}, "wrong index", "names response nan"),
        (THREE | {"comparisons": [[0, math.inf]]}, "wrong index", "names response inf"),
        (THREE | {"comparisons": [[True, 0]]}, "wrong index", "names response True"),
        (THREE | {"comparisons": [{"first": 0}]}, "wrong index", "names response None"),
        (THREE | {"comparisons": [[1, 1]]}, "wrong index", r"'comparisons'\[0\] compares response 1 with itself"),
        (THREE | {"comparisons": [[1]]}, "wrong type", r"'comparisons'\[0\] must be \[i, j\]"),
        (THREE | {"comparisons": [[0, 1, 2]]}, "label outside", r"'comparisons'\[0\]: 'label' must be in \[0, 1\]"),
        (THREE | {"ratings": [1, 2, 3]}, "wrong type", "'ratings' must be {attribute: .*, got a list"),
        (THREE | {"ratings": {"help": [1, 2]}}, "wrong type", "the ratings of 'help' must be a list of 3.* got 2"),
        (THREE | {"ratings": {"help": [1, 2, None]}}, "no rating", "no attribute on which every response has a rat"),
        (ultrafeedback(("5", "good"), ("4", "1")), "wrong type", "the rating of 'honesty' of response 0 must be a nu"),
        (ultrafeedback(("5", "inf"), ("4", "1")), "not a finite number", "the rating of 'honesty' of response 0 must"),
        (
            {"prompt": "p", "completions": [{"response": "a", "annotations": [1]}] * 2},
            "wrong type",
            "'annotations' of completion 0 must be an object, got a list",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_kind_and_a_remedy(row, kind, message):
    with pytest.raises(BadRow, match=message) as caught:
        normalise_preference(row)
    assert caught.value.kind.startswith(kind)
    assert "\n" not in str(caught.value)


def test_values_nested_without_end_are_refused():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(BadRow, match="nested more than 64 deep"):
        normalise_preference(PAIR | {"extra": value})
    while value:  # freed one by one: Python's own recursion has its limits too
        value = value[0]


def test_what_a_message_quotes_is_short_and_printable():
    row = {f"\x1b[31m{i}\ud800" + "x" * 1000: 1 for i in range(1000)}
    with pytest.raises(BadRow) as caught:
        normalise_preference(row)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert " and 984 more" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "title"),
    [
        (PAIR, "prompt/chosen/rejected"),
        ({"instruction": "p", "chosen": "a", "reject": "b"}, "instruction/chosen/reject"),
        ({"chosen": "a", "rejected": "b"}, "whole texts"),
        ({"chosen": [*PROMPT, assistant("4")], "rejected": [*PROMPT, assistant("5")]}, "whole conversations"),
        (LISTS, "lists of chosen and rejected"),
        (THREE | {"ranks": [1, 2, 3]}, "ranked group"),
        (ultrafeedback(("5", "3")), "rated group"),
    ],
)
def test_a_form_has_a_name(row, title):
    assert form_title(row) == title


def test_the_examples_in_the_documentation_are_read():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    texts = re.findall(r"^\| [^|`]+ \| `(\{.*?\})`", page, re.MULTILINE)
    examples = [json.loads(text) for text in texts if "..." not in text]  # the others are cut short
    assert len(examples) >= 9
    for example in examples:
        assert normalise_preference(example).responses[0].strip() == "4"
