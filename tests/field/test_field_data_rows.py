"""Rows as they come: what is read, exactly as it was meant, and what is refused with the row and its columns."""

import bz2
import csv
import gzip
import json
import unicodedata

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from openrlhf_gpm.cli.main import main
from openrlhf_gpm.data import BadRow, merge_prompts, normalise_preference, read_preferences
from openrlhf_gpm.data.grouping import split_by_prompt
from openrlhf_gpm.data.rows import read_rows

SIDES = {"chosen": "Yes.", "rejected": "No."}


def talk(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(capsys, *argv):
    status = main(["data", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def merged(capsys, tmp_path, source):
    """The lines that `data merge` writes."""
    assert run(capsys, "merge", source, "--output", tmp_path / "merged.jsonl")[0] == 0
    return [json.loads(line) for line in (tmp_path / "merged.jsonl").read_text(encoding="utf-8").splitlines()]


# Structure that arrives as text


def test_a_conversation_in_a_string_is_a_conversation(tmp_path, capsys):
    as_text = [json.dumps(talk("Name a fish.", answer)) for answer in ("Cod", "Oak")]
    rows = [
        {"prompt": "Name a fish.", "chosen": as_text[0], "rejected": as_text[1]},
        {"chosen": as_text[0], "rejected": as_text[1]},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    status, out, _ = run(capsys, "check", source)
    assert status == 0
    assert "prompt/chosen/rejected 1, whole conversations 1" in out
    (group,) = merged(capsys, tmp_path, source)
    assert group["prompt"] == [{"role": "user", "content": "Name a fish."}]
    assert group["responses"] == ["Cod", "Oak"]


def test_messages_in_python_s_notation_are_refused(tmp_path, capsys):
    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        cells = [repr(talk("Name a fish.", answer)) for answer in ("Cod", "Oak")]
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], ["Name a fish.", *cells]])
    status, out, _ = run(capsys, "check", path)
    assert status == 1
    assert "'chosen' holds messages in Python's notation; write them as JSON" in out


def test_an_answer_that_looks_like_a_list_stays_one_answer(tmp_path, capsys):
    """F19: only conversations are structure in the cells of prompt, chosen and rejected."""
    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        rows = [["Primes as JSON.", '["2","3"]', "[1,2]"], ["An object.", '{"a": 1}', "N/A"]]
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], *rows])
    groups = [group for _, group in read_preferences(path)]
    assert [(group.responses, len(group.comparisons)) for group in groups] == [
        (['["2","3"]', "[1,2]"], 1),
        (['{"a": 1}', "N/A"], 1),
    ]


def test_one_text_part_is_its_text_and_more_are_refused():
    def parts(*texts):
        return [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]

    assert normalise_preference(SIDES | {"prompt": parts("Hi")}).prompt == [{"role": "user", "content": "Hi"}]
    with pytest.raises(BadRow, match=r"'content' of 'prompt'.0. must be text, got a list"):
        normalise_preference(SIDES | {"prompt": parts("Hi", "there")})


# Columns


def test_an_instruction_keeps_its_input(tmp_path, capsys):
    rows = [
        {"instruction": "Into Latin.", "input": "A dog.", "chosen": "Canis.", "rejected": "Dog."},
        {"instruction": "Into Latin.", "input": "A fish.", "chosen": "Piscis.", "rejected": "Canis."},
        {"instruction": "Name a fish.", "input": "", "chosen": "Cod", "rejected": "Oak"},
    ]
    lines = merged(capsys, tmp_path, write(tmp_path / "in.jsonl", rows))
    assert [line["prompt"] for line in lines] == ["Into Latin.\nA dog.", "Into Latin.\nA fish.", "Name a fish."]


@pytest.mark.parametrize("name", ["question", "query"])
def test_a_question_is_the_prompt_where_there_is_no_other(name, tmp_path, capsys):
    rows = [{name: "Is it?", "chosen": f"{i}, yes.", "rejected": f"{i}, no."} for i in range(30)]
    source = write(tmp_path / "in.jsonl", rows)
    assert "  prompts               1\n" in run(capsys, "check", source)[1]
    sides = ("--train", tmp_path / "a.jsonl", "--held_out", tmp_path / "b.jsonl")
    status, _, err = run(capsys, "split", source, *sides)
    assert status == 2
    assert "no prompt falls to" in err
    assert normalise_preference(rows[0] | {"instruction": "Really?"}).prompt == "Really?"


def test_whole_texts_beside_what_may_be_their_prompt_are_refused():
    for row in ({"text": "Is it?"}, {"input": "Is it?"}, {"conversation": talk("Is it?", "What?")}):
        with pytest.raises(BadRow, match=rf"{next(iter(row))}"):
            normalise_preference(SIDES | row)
    about = {"source": "a page", "chosen_model": "m", "score": 3, "tags": ["x"], "note": " "}
    assert normalise_preference(SIDES | about).prompt == ""
    dialogue = {side: f"\n\nHuman: Is it?\n\nAssistant: {text}" for side, text in SIDES.items()}
    assert normalise_preference(dialogue | {"text": "Is it?"}).responses == [" Yes.", " No."]


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [{"type": "function"}]},
        {"images": ["a.png"]},
        {"context": "It rains."},
        {"history": [["a", "b"]]},
        {"input": "It rains."},
        {"chosen": [{"role": "assistant", "content": "Yes.", "tool_calls": [{"name": "f"}]}]},
        {"chosen": [{"role": "assistant", "content": "Yes.", "reasoning_content": "Because."}]},
    ],
)
def test_what_changes_the_meaning_and_is_not_read_is_refused(row):
    whole = {"prompt": "Is it?", "chosen": [{"role": "assistant", "content": "Yes."}], "rejected": "No."}
    whole["rejected"] = [{"role": "assistant", "content": "No."}]
    named = next(iter(row)) if "chosen" not in row else list(row["chosen"][0])[-1]
    with pytest.raises(BadRow, match=named) as caught:
        normalise_preference(whole | row)
    assert caught.value.kind == "unread column"
    nulls = dict.fromkeys(row) | {"history": [], "input": "", "tools": {}}
    assert normalise_preference(whole | {k: v for k, v in nulls.items() if k != "chosen"}).responses == ["Yes.", "No."]


def test_check_names_the_columns_that_it_does_not_read_and_grades_that_contradict(tmp_path, capsys):
    rows = [
        {"prompt": "a", **SIDES, "winner": "tie"},
        {"prompt": "b", **SIDES, "score_chosen": 6.0, "score_rejected": 6.0},
        {"prompt": "c", **SIDES, "score_chosen": 2.0, "score_rejected": 9.0},
        {"prompt": "d", **SIDES, "score_chosen": 9.0, "score_rejected": 2.0, "nothing": None},
    ]
    status, out, _ = run(capsys, "check", write(tmp_path / "in.jsonl", rows))
    assert status == 0
    assert "  columns not read      winner 1, score_chosen 3, score_rejected 3\n" in out
    assert "  grades                1 row scores rejected above chosen, 1 scores them equal\n" in out


def test_check_shows_one_example_as_the_model_reads_it(tmp_path, capsys, gpm_checkpoint):
    source = write(tmp_path / "in.jsonl", [{"prompt": "Hello", **SIDES}])
    out = run(capsys, "check", source)[1]
    assert f"example, {source}:1\n    prompt    'Hello'\n    preferred 'Yes.'\n    other     'No.'\n" in out
    status, out, _ = run(capsys, "check", source, "--model", gpm_checkpoint)
    assert status == 0
    assert "rendered  '<s><|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nYes.<|im_end|>'" in out
    (end,) = (line for line in out.splitlines() if line.startswith("    end "))
    assert end.endswith("1:<|im_end|> |")
    assert "  the model reads       2 responses, all as they are given\n" in out


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": 0, "margin": 5}, "'label' 0 and 'margin' 5 contradict"),
        ({"label": 1, "margin": -5}, "'label' 1 and 'margin' -5 contradict"),
        ({"margin": -5}, "contradict"),
        ({"label": 0.5, "margin": 1}, "contradict"),
        ({"label": 0.9, "log_odds": -2}, "'label' 0.9 and 'log_odds' -2 contradict"),
        ({"label": True}, "must be a number in .0, 1., got True"),
    ],
)
def test_a_margin_against_the_label_is_refused(row, said):
    with pytest.raises(BadRow, match=said):
        normalise_preference({"prompt": "Is it?", **SIDES, **row})


# The same thing spelled twice


def test_spaces_around_a_prompt_and_its_normal_form_do_not_count(tmp_path, capsys):
    rows = [{"prompt": f"Is é {i}?{end}", **SIDES} for i in range(16) for end in ("", "\n")]
    decomposed = [row | {"prompt": unicodedata.normalize("NFD", row["prompt"])} for row in rows]
    source = write(tmp_path / "in.jsonl", [*rows, *decomposed])
    assert "  prompts               16\n" in run(capsys, "check", source)[1]
    assert len(merge_prompts(group for _, group in read_preferences(source))) == 16


def test_nearly_equal_prompts_are_on_one_side_of_a_split(tmp_path, capsys):
    """F18: of 100 questions, each in eight spellings, none is on both sides."""
    spellings = ["{}?", "{}? ", "{}?\n", "\ufeff{}?", "{}", "  {} !", "\uff0c{}\u2026"]
    first, second = [], []
    for i in range(100):
        texts = [spelling.format(f"Is number {i} a prime") for spelling in spellings]
        first += [{"prompt": text, **SIDES, "id": i} for text in (*texts, texts[0].upper())]
        second.append({"prompt": texts[0].replace(" ", "  ").title(), **SIDES})
    one, two = write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)
    sides = split_by_prompt((group for _, group in read_preferences(one)), 0.3)
    train, held_out = ({group.id for group in side} for side in sides)
    assert not train & held_out
    assert len(held_out) > 10
    assert {group.prompt for side in sides for group in side} == {row["prompt"] for row in first}
    assert f"shared prompts        100 with {one}" in run(capsys, "check", one, two)[1]
    different = [{"prompt": text, **SIDES} for text in ("2 + 2?", "2 - 2?", "C", "C++", "?", "!")]
    prompts = merge_prompts(group for _, group in read_preferences(write(tmp_path / "c.jsonl", different)))
    assert len(prompts) == 6


def test_parquet_adds_no_arguments_to_a_call_of_a_tool(tmp_path, capsys):
    def row(name, arguments):
        call = {"role": "assistant", "content": "I look.", "tool_calls": [{"function": {"name": name, **arguments}}]}
        prompt = [{"role": "user", "content": name}, call, {"role": "tool", "content": "noon"}]
        return {"prompt": prompt, "chosen": [talk("", "Yes.")[1]], "rejected": [talk("", "No.")[1]]}

    rows = [row("weather", {"arguments": {"city": "Oslo"}}), row("clock", {"arguments": {"zone": "CET"}})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    from_lines = merged(capsys, tmp_path, write(tmp_path / "in.jsonl", rows))
    assert merged(capsys, tmp_path, tmp_path / "in.parquet") == from_lines
    assert [line["prompt"] for line in from_lines] == [row["prompt"] for row in rows]


# Formats

ROWS = [{"prompt": f"p{i}", **SIDES} for i in range(3)]


def test_a_saved_dataset_is_read_as_training_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(tmp_path / "neither")
    for name in ("one", "both"):
        assert [row for _, row in read_rows(tmp_path / name)] == ROWS
    with pytest.raises(ValueError, match=r"has several splits: name the folder of one, as in .*neither/a"):
        list(read_rows(tmp_path / "neither"))
    assert [row for _, row in read_rows(tmp_path / "neither" / "a")] == ROWS
    (next((tmp_path / "one").glob("*.arrow"))).write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a whole dataset of save_to_disk"):
        list(read_rows(tmp_path / "one"))


def test_arrow_feather_and_packed_tables_are_read(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    text = "prompt,chosen,rejected\n" + "".join(f"{row['prompt']},Yes.,No.\n" for row in ROWS)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(text.replace(",", "\t").encode()))
    for name in ("a.feather", "a.arrow", "a.csv.gz", "a.tsv.gz"):
        assert [row for _, row in read_rows(tmp_path / name)] == ROWS, name


@pytest.mark.parametrize(
    ("name", "pack", "remedy"),
    [("a.jsonl.bz2", bz2.compress, "bunzip2"), ("a.jsonl.zst", lambda _: b"(\xb5/\xfd0000", "zstd -d")],
)
def test_a_packed_file_is_named_with_what_unpacks_it(name, pack, remedy, tmp_path):
    (tmp_path / name).write_bytes(pack(b"{}\n"))
    with pytest.raises(ValueError, match=f"is packed: unpack it first .{remedy} {name}"):
        list(read_rows(tmp_path / name))


def test_a_packed_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(ValueError, match=r"is packed twice: unpack it first .gunzip"):
        list(read_rows(tmp_path / "a.parquet.gz"))


def test_a_long_cell_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\np,{'x' * 200_000},No.\n")
    assert [len(row["chosen"]) for _, row in read_rows(tmp_path / "a.csv")] == [200_000]


def test_a_key_that_is_there_twice_is_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "chosen": "a", "chosen": "b", "rejected": "c"}\n')
    status, out, _ = run(capsys, "check", tmp_path / "a.jsonl")
    assert status == 1
    assert "the key 'chosen' is there twice in one object" in out


# Groups to score


def score(tmp_path, gpm_checkpoint, source, *flags):
    where = ["--model", str(gpm_checkpoint), "--input", str(source), "--output", str(tmp_path / "out.jsonl")]
    return main(["score", *where, "--device", "cpu", *flags])


def test_score_limits_the_responses_of_a_group(tmp_path, gpm_checkpoint, capsys):
    """F22: K^2 numbers per group."""
    source = write(tmp_path / "in.jsonl", [{"prompt": "p", "responses": [str(i) for i in range(1001)]}])
    assert score(tmp_path, gpm_checkpoint, source) == 2
    assert f"{source}:1: 'responses' has 1001 responses, more than 1000" in capsys.readouterr().err
    small = write(tmp_path / "small.jsonl", [{"prompt": "p", "responses": ["a", "b", "c"]}])
    assert score(tmp_path, gpm_checkpoint, small, "--max_responses", "2") == 2
    assert "more than 2" in capsys.readouterr().err
    assert score(tmp_path, gpm_checkpoint, small, "--max_responses", "3") == 0


def test_score_reads_every_format_and_name_of_a_group(tmp_path, gpm_checkpoint):
    rows = [{"instruction": "Hello", "completions": ["a", "b"]}, {"query": "Hello", "responses": ["a", "b"]}]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert score(tmp_path, gpm_checkpoint, tmp_path / "in.jsonl.gz") == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0]["scores"] == lines[1]["scores"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), tmp_path / "in.parquet")
    assert score(tmp_path, gpm_checkpoint, tmp_path / "in.parquet") == 0
