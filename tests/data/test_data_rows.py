"""Rows of files of every format, and what is said about files that cannot be read."""

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from openrlhf_gpm.data import PreferenceGroup, read_preferences
from openrlhf_gpm.data.rows import read_rows

ROWS = [
    {"prompt": "Ünï", "chosen": 'a, "b"\nc', "rejected": "\td", "label": 0.25},
    {"prompt": "q", "chosen": "x", "rejected": "y", "label": 1.0},
]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def cells(rows, comma):
    quote = '"{}"'.format
    texts = [[quote(str(value).replace('"', '""')) for value in row.values()] for row in rows]
    return "\r\n".join(comma.join(row) for row in [list(rows[0]), *texts]).encode()


FILES = {
    "rows.jsonl": lines(ROWS),
    "rows.jsonl.gz": gzip.compress(lines(ROWS)),
    "rows.JSONL": lines(ROWS),
    "rows.txt": lines(ROWS),
    "rows.gz": gzip.compress(lines(ROWS)),
    "rows.json": json.dumps(ROWS).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "rows.json.gz": gzip.compress(json.dumps(ROWS, indent=1).encode()),
    "lines.json": lines(ROWS),
    "rows.parquet": table(ROWS),
    "parquet_without_suffix": table(ROWS),
    "rows.csv": cells(ROWS, ","),
    "rows.tsv": cells(ROWS, "\t"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows_each_with_its_place(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    by_line = not any(word in name for word in ("parquet", "csv", "tsv")) and b"[" not in FILES[name][:4]
    by_line = by_line and name != "rows.json.gz"
    places = [f"{path}:{n}" if by_line else f"{path}, row {n}" for n in (1, 2)]
    assert list(read_rows(path)) == list(zip(places, ROWS, strict=True))
    assert list(read_rows(str(path))) == list(read_rows(path))


def test_one_json_object_is_one_row(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ROWS[0], indent=2), encoding="utf-8")
    assert list(read_rows(path)) == [(f"{path}, row 1", ROWS[0])]


def test_nested_values_of_parquet_are_plain(tmp_path):
    row = {"prompt": [{"role": "user", "content": "p"}], "responses": ["a", "b"], "scores": [1.0, 2.0]}
    path = tmp_path / "nested.parquet"
    path.write_bytes(table([row] * 600))
    rows = [got for _, got in read_rows(path)]
    assert rows == [row] * 600


def test_lists_in_cells_of_csv_are_read_and_empty_cells_are_absent(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text('prompt,responses,scores,label,id\np,"[""a"", ""b""]","[1, 2]",,7\n"[not json","[1","",x,\n')
    assert [row for _, row in read_rows(path)] == [
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "id": "7"},
        {"prompt": "[not json", "responses": "[1", "label": "x"},
    ]


def test_a_conversation_in_a_cell_of_any_name_is_read(tmp_path):
    path = tmp_path / "pairs.csv"
    messages = [{"role": "user", "content": "2 + 2?"}]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "instruction", "note"])
        writer.writerow([json.dumps(messages), json.dumps(messages), "[1]"])
    assert [row for _, row in read_rows(path)] == [{"question": messages, "instruction": messages, "note": "[1]"}]


def test_a_text_of_parquet_that_is_not_utf8_spoils_its_own_row_only(tmp_path):
    path = tmp_path / "latin.parquet"
    raw = pyarrow.array([b"good", b"b\xe4d", b"good"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.utf8(), 3, raw.buffers())
    same = pyarrow.array(["p"] * 3)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": same, "chosen": same, "rejected": text}), path)
    rows = read_preferences(path, on_bad="skip")
    assert [where for where, _ in rows] == [f"{path}, row 1", f"{path}, row 3"]
    with pytest.raises(ValueError, match=r"row 2: text that is not UTF-8"):
        list(read_preferences(path))


def test_a_truncated_gzip_file_gives_its_whole_rows_before_the_error(tmp_path):
    path = tmp_path / "long.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS * 5000))[:-100])
    rows = read_rows(path)
    assert next(rows) == (f"{path}:1", ROWS[0])
    with pytest.raises(ValueError, match="broken gzip"):
        list(rows)


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: give files \(.jsonl"):
        list(read_rows(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet"):
        list(read_rows(tmp_path / "absent.parquet"))
    with pytest.raises(FileNotFoundError, match="absent"):
        list(read_rows(tmp_path / "absent"))


def test_a_dataset_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^nobody/nothing is neither a file nor a dataset that can be loaded"
    ) as caught:
        list(read_rows("nobody/nothing"))
    assert "\n" not in str(caught.value)


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(ROWS) + b"{broken\n")
    groups = read_preferences(path)
    assert [next(groups)[1].prompt, next(groups)[1].prompt] == ["Ünï", "q"]
    with pytest.raises(ValueError, match=r"in\.jsonl:3: not valid JSON"):
        next(groups)


def test_preferences_come_with_their_places(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines([ROWS[0]]) + b"\n" + lines([ROWS[1]]))
    places, groups = zip(*read_preferences(path), strict=True)
    assert places == (f"{path}:1", f"{path}:3")
    assert all(isinstance(group, PreferenceGroup) for group in groups)
    assert groups[0].comparisons[0].label == 0.25
