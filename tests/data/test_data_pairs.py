"""Preference pairs in every accepted form become the same `Pair`."""

import math
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf_gpm.data import PairKeys
from openrlhf_gpm.data.pairs import normalise_pair
from openrlhf_gpm.data.records import Pair


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [SYSTEM, user("Hi"), assistant("Hello"), user("2 + 2?")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        pytest.param({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "2 + 2?", id="text"),
        pytest.param({"prompt": TURNS, "chosen": "4", "rejected": "5"}, TURNS, id="messages then text"),
        pytest.param(
            {"prompt": TURNS, "chosen": [assistant("4")], "rejected": [assistant("5")]}, TURNS, id="messages"
        ),
        pytest.param(
            {"prompt": "2 + 2?", "chosen": [assistant("4")], "rejected": assistant("5")}, "2 + 2?", id="one message"
        ),
        pytest.param(
            {"chosen": [*TURNS, assistant("4")], "rejected": [*TURNS, assistant("5")]}, TURNS, id="implicit prompt"
        ),
        pytest.param({"chosen": "4", "rejected": "5"}, "", id="implicit prompt in text"),
        pytest.param(
            {"prompt": "2 + 2?", "chosen": [*TURNS, assistant("4")], "rejected": [*TURNS, assistant("5")]},
            TURNS,
            id="conversations that repeat a text prompt",
        ),
        pytest.param(
            {"prompt": TURNS, "chosen": [*TURNS, assistant("4")], "rejected": [*TURNS, assistant("5")]},
            TURNS,
            id="conversations that repeat the messages",
        ),
        pytest.param({"instruction": "2 + 2?", "chosen": "4", "reject": "5"}, "2 + 2?", id="authors"),
        pytest.param(
            {"instruction": "2 + 2?", "chosen": {"response": "4"}, "reject": {"response": "5"}},
            "2 + 2?",
            id="authors nested",
        ),
        pytest.param(
            {"prompt": None, "chosen": [*TURNS, assistant("4")], "rejected": [*TURNS, assistant("5")], "reject": None},
            TURNS,
            id="columns that hold None are absent",
        ),
        pytest.param(
            {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "subset": "hep-python", "id": 3, "chosen_model": "m"},
            "2 + 2?",
            id="RewardBench, with columns we do not read",
        ),
    ],
)
def test_every_form_gives_the_same_pair(row, prompt):
    assert normalise_pair(row) == Pair(prompt=prompt, chosen="4", rejected="5", label=1.0, margin=0.0)


def test_columns_can_have_other_names():
    keys = PairKeys(prompt="question", chosen="better", rejected="worse")
    row = {"question": "Q", "better": "a", "worse": "b", "prompt": "not this", "chosen": "nor", "rejected": "these"}
    assert normalise_pair(row, keys) == Pair("Q", "a", "b")


def test_a_named_prompt_column_wins_over_instruction():
    assert normalise_pair({"prompt": "p", "instruction": "i", "chosen": "a", "rejected": "b"}).prompt == "p"
    keys = PairKeys(prompt="instruction")
    assert normalise_pair({"prompt": "p", "instruction": "i", "chosen": "a", "rejected": "b"}, keys).prompt == "i"


def test_rejected_wins_over_reject():
    assert normalise_pair({"chosen": "a", "rejected": "b", "reject": "c"}).rejected == "b"


@pytest.mark.parametrize(("label", "expected"), [(0, 0.0), (1, 1.0), (0.25, 0.25), (None, 1.0)])
def test_label_is_the_probability_that_chosen_wins(label, expected):
    assert normalise_pair({"chosen": "a", "rejected": "b", "label": label}).label == expected


def test_margin_is_any_finite_number_on_the_label_s_side():
    assert normalise_pair({"chosen": "a", "rejected": "b", "margin": 2}).margin == 2.0
    assert normalise_pair({"chosen": "a", "rejected": "b", "label": 0, "margin": -2}).margin == -2.0
    assert normalise_pair({"chosen": "a", "rejected": "b", "margin": None}).margin == 0.0


def test_the_row_is_not_changed_and_not_shared():
    row = {"prompt": [user("Hi")], "chosen": "a", "rejected": "b"}
    pair = normalise_pair(row)
    pair.prompt[0]["content"] = "changed"
    assert row == {"prompt": [user("Hi")], "chosen": "a", "rejected": "b"}


def test_text_is_kept_to_the_last_space():
    assert normalise_pair({"prompt": " p\n", "chosen": " é 🙂 ", "rejected": "b"}).chosen == " é 🙂 "


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@given(st.lists(texts, min_size=1, max_size=4), texts, texts.map(lambda t: t + "x"))
def test_explicit_and_implicit_prompts_agree(turns, chosen, rejected):
    if chosen == rejected:
        rejected += "x"
    prompt = [user(t) if i % 2 == 0 else assistant(t) for i, t in enumerate(turns[: len(turns) // 2 * 2 + 1])]
    prompt = prompt if prompt[-1]["role"] == "user" else prompt[:-1]
    explicit = normalise_pair({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    implicit = normalise_pair({"chosen": [*prompt, assistant(chosen)], "rejected": [*prompt, assistant(rejected)]})
    assert asdict(explicit) == asdict(implicit)


BASE = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "p", "chosen": "a"},
            r"column 'rejected' is missing \(there is: prompt, chosen\); accepted forms: ",
        ),
        ({"prompt": "p", "rejected": "a"}, "column 'chosen' is missing .*instruction/chosen/reject"),
        ({}, r"column 'chosen' is missing \(there is: nothing\)"),
        (BASE | {"chosen": ""}, "'chosen' is an empty response"),
        (BASE | {"rejected": [assistant(" \n")]}, "'rejected' is an empty response"),
        (BASE | {"rejected": "a"}, "'chosen' and 'rejected' are equal, so neither can be preferred"),
        (BASE | {"label": 1.5}, r"'label' must be in \[0, 1\].*got 1.5"),
        (BASE | {"label": -1}, r"'label' must be in \[0, 1\]"),
        (BASE | {"label": math.nan}, "'label' must be a finite number, got nan"),
        (BASE | {"label": "1"}, "'label' must be a finite number, got '1'; leave it out for 1"),
        (BASE | {"margin": math.inf}, "'margin' must be a finite number, got inf; leave it out for 0"),
        (BASE | {"chosen": 3}, "'chosen' must be text or a list of messages, got a number"),
        (BASE | {"chosen": []}, "'chosen' is an empty list of messages"),
        (BASE | {"chosen": {"response": ["a"]}}, r"'chosen'\[0\] must be a message"),
        (BASE | {"chosen": ["a"]}, r"'chosen'\[0\] must be a message"),
        (BASE | {"chosen": [{"role": "assistant"}]}, r"'content' of 'chosen'\[0\] must be text, got null"),
        (BASE | {"chosen": [user("a")]}, "'chosen' must end with an assistant message, got role 'user'"),
        (BASE | {"prompt": 1.0}, "'prompt' must be text or a list of messages, got a number"),
        (BASE | {"prompt": []}, "'prompt' is an empty list"),
        (BASE | {"prompt": [user("Hi"), assistant("Hello")]}, "'prompt' must not end with an assistant message"),
        (BASE | {"chosen": [assistant("a")]}, "'chosen' and 'rejected' must both be text or both be messages"),
        (BASE | {"chosen": "half \ud83d"}, "'chosen' has half a surrogate pair at character 5"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "there is no prompt: no prompt column"),
        (
            {"chosen": [*TURNS, assistant("a")], "rejected": [*TURNS[:3], user("3 + 3?"), assistant("b")]},
            "must share all but the last assistant message, but they differ at message 4",
        ),
        (
            {"chosen": [*TURNS, assistant("a")], "rejected": [*TURNS[:2], assistant("b")]},
            "they differ at message 3",
        ),
        (
            BASE | {"chosen": [*TURNS, assistant("a")], "rejected": [*TURNS, assistant("b")]},
            "conversations that do not repeat the prompt column; leave only the last assistant message",
        ),
    ],
)
def test_a_bad_row_is_refused_with_what_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        normalise_pair(row)


def test_a_prompt_column_that_was_asked_for_must_exist():
    with pytest.raises(ValueError, match=r"column 'question' is missing \(there is: prompt, chosen, rejected\)"):
        normalise_pair(BASE, PairKeys(prompt="question"))


def test_reject_is_not_used_when_another_name_was_asked_for():
    with pytest.raises(ValueError, match="column 'worse' is missing"):
        normalise_pair({"chosen": "a", "reject": "b"}, PairKeys(rejected="worse"))
