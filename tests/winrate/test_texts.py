"""Answers are read in every usual form and matched by prompt; what cannot be read is one line with its place."""

import json

import pytest

from openrlhf_gpm.winrate.texts import Question, common_keys, left_out, read_answers, read_questions


@pytest.fixture
def write(tmp_path):
    """A function that writes rows, as JSON lines or for .json as one list, and returns the path."""

    def write(name, *rows):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(json.dumps(list(rows)) if name.endswith(".json") else lines)
        return tmp_path / name

    return write


FORMS = {
    "ours.jsonl": [{"prompt": "p", "response": "a"}],
    "several.jsonl": [{"prompt": "p", "responses": ["a"]}],
    "messages.jsonl": [{"prompt": [{"role": "user", "content": "p"}], "response": "a"}],
    "alpaca.json": [{"instruction": "p", "output": "a", "generator": "g", "dataset": "d"}],
    "mt_bench.jsonl": [{"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["a", "second turn"]}]}],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_answer_to_the_same_prompt(write, name):
    questions = read_questions(write("question.jsonl", {"question_id": 81, "turns": ["p", "and then?"]}))
    ours = read_answers("ours", write("reference.jsonl", *FORMS["ours.jsonl"]))
    other = read_answers("other", write(name, *FORMS[name]), questions)
    (key,) = common_keys([ours, other])
    assert other.by_prompt[key].texts == ["a"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("ours.jsonl", {"prompt": "p", "response": "a", "subset": "poems", "category": "other"}),
        ("alpaca.json", {"instruction": "p", "output": "a", "dataset": "poems"}),
        ("mt_bench.jsonl", {"question_id": 81, "choices": [{"turns": ["a"]}]}),
        ("later.jsonl", {"prompt": "p", "response": "a"}),
    ],
)
def test_the_subset_of_a_prompt_is_read_under_each_name(write, name, row):
    questions = read_questions(write("question.jsonl", {"question_id": 81, "category": "poems", "turns": ["p"]}))
    (answered,) = read_answers("a", write(name, row), questions).by_prompt.values()
    assert answered.subset == (None if name == "later.jsonl" else "poems")


def test_rows_of_one_prompt_are_several_answers_to_it_each_with_its_place(write):
    path = write("a.jsonl", {"prompt": "p", "responses": ["a", "b"]}, {"prompt": "p", "response": ""})
    (answered,) = read_answers("a", path).by_prompt.values()
    assert answered.texts == ["a", "b", ""]
    assert answered.places == [f"{path}:1", f"{path}:1", f"{path}:2"]


def test_a_system_text_makes_another_prompt(write):
    a = read_answers("a", write("a.jsonl", {"prompt": "p", "response": "a", "system": "Be brief."}))
    b = read_answers("b", write("b.jsonl", {"prompt": "p", "response": "a"}))
    assert set(a.by_prompt) & set(b.by_prompt) == set()


def test_prompts_that_some_policy_lacks_are_left_out_and_said(write):
    def rows(prompts):
        return [{"prompt": p, "response": "x"} for p in prompts]

    a, b, c = (read_answers(name, write(name, *rows(name))) for name in ("tpqr", "qp", "pqx"))
    keys = common_keys([a, b, c])
    assert [a.by_prompt[key].prompt for key in keys] == ["p", "q"]
    assert left_out([a, b, c], 2) == [
        "tpqr: 2 of its 4 prompts are left out: not every policy answered them",
        "pqx: 1 of its 3 prompts are left out: not every policy answered them",
    ]
    with pytest.raises(ValueError, match=r"no prompt is in all files \(tpqr has 4, other has 1\)"):
        common_keys([a, read_answers("other", write("other", *rows("z")))])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p"}, "column 'response' is missing (there is: prompt)"),
        ({"response": "a"}, "column 'prompt' is missing"),
        ({"prompt": "", "response": "a"}, "the prompt is empty"),
        ({"prompt": "p", "response": ["a"]}, "'response' must be text, got a list"),
        ({"prompt": "p", "responses": "a"}, "'responses' must be a list of texts, got text"),
        ({"prompt": "p", "responses": []}, "'responses' is empty"),
        ({"prompt": "p", "responses": ["a", 3]}, "'responses' must be text, got a number"),
        ({"question_id": 1, "choices": [{"turns": ["a"]}]}, "add --questions question.jsonl"),
        ({"prompt": "p", "response": "a", "subset": 3}, "'subset' must be text, got a number"),
        ([1], "expected a JSON object, got a list"),
    ],
)
def test_a_row_that_is_no_answer_is_one_line_with_its_place(write, row, said):
    path = write("a.jsonl", {"prompt": "q", "response": "a"}, row)
    with pytest.raises(ValueError, match=r"a\.jsonl:2: ") as error:
        read_answers("a", path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": 2, "choices": [{"turns": ["a"]}]}, "question 2 is not in --questions"),
        ({"question_id": 1, "choices": []}, "'choices' must be a list of answers"),
        ({"question_id": 1, "choices": [{"turns": []}]}, "'choices'[0] must hold 'turns'"),
    ],
)
def test_an_answer_of_mt_bench_without_its_question_or_turns_is_refused(write, row, said):
    with pytest.raises(ValueError, match=r"a\.jsonl:1: ") as error:
        read_answers("a", write("a.jsonl", row), {"1": Question("p", None)})
    assert said in str(error.value)
