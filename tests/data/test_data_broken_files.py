"""A collection of broken files: none brings a traceback, none leaves half a file."""

import gzip
import io
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from openrlhf_gpm.cli.main import main
from openrlhf_gpm.data.rows import read_rows

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b", "label": 0.25}
LINES = b"".join(json.dumps(GOOD | {"prompt": f"p{i}"}).encode() + b"\n" for i in range(20))


def table(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


TABLE = table([GOOD] * 4)

BROKEN = {
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": (b"\n \n\n", "holds no rows"),
    "empty.json": (b"", "is empty"),
    "list.json": (b"[]", "holds no rows"),
    "number.json": (b"3", "must hold a JSON list of objects"),
    "half.json": (b'[{"prompt": "p"}, {', r":1: not valid JSON \(.* at column 20\)"),
    "third_line.json": (b'[\n{"prompt": "p"},\n{"x" 3}]', r":3: not valid JSON"),
    "latin.json": (b'[{"prompt": "\xe4"}]', r": not UTF-8 \(.* at byte 13\)"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "digits.json": (b"[" + b"9" * 5000 + b"]", "not readable JSON"),
    "binary.json": (b"\x00\x01\x02", "is a binary .* file"),
    "binary.jsonl": (b"\x00\x01\x02\n\x03", "is a binary .* file, not JSON lines"),
    "utf16.jsonl": (LINES.decode().encode("utf-16"), "is a binary .or UTF-16. file"),
    "text.jsonl": (b"prompt chosen\n", r":1: not valid JSON"),
    "digits.jsonl": (b"9" * 5000, ":1: not readable JSON"),
    "deep.jsonl": (b'{"a":' * 100_000, ":1: the JSON is nested too deeply"),
    "not.jsonl.gz": (LINES, "is not a .gz file"),
    "zipped.jsonl": (gzip.compress(LINES), "is a .gz file: give it a name that ends with .gz"),
    "half.jsonl.gz": (gzip.compress(os.urandom(50_000).hex().encode())[:9_000], "is a broken gzip file"),
    "flipped.jsonl.gz": (gzip.compress(LINES)[:-8] + b"\0" * 8, "is a broken gzip file"),
    "garbage.jsonl.gz": (gzip.compress(LINES)[:12] + b"\xff" * 50, "is a broken gzip file"),
    "no.parquet": (LINES, "is not a .parquet file"),
    "parquet.jsonl": (TABLE, "is a .parquet file: give it a name that ends with .parquet"),
    "half.parquet": (TABLE[:200], "is a broken parquet file"),
    "footer.parquet": (b"PAR1" + b"\xff" * 100 + b"PAR1", "is a broken parquet file"),
    "none.parquet": (TABLE[:4], "is a broken parquet file"),
    "rows_of_none.parquet": (table([GOOD][:0]), "holds no rows"),
    "header.csv": (b"prompt,chosen,rejected\n", "holds no rows"),
    "twice.csv": (b"prompt,chosen,chosen\n1,2,3\n", "names the column 'chosen' twice"),
    "quote.csv": (b'prompt,chosen\n"open,1\n', "broken CSV"),
    "latin.csv": (b"prompt,chosen\n\xe4,1\n", "not UTF-8"),
    "cells.csv": (b"prompt,chosen\n1,2,3\n", ", row 1: the row has more cells than the header"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


WITH_BAD_ROWS = {
    "half_line.jsonl": LINES[:-9],
    "latin_line.jsonl": LINES + b'{"prompt": "\xe4", "chosen": "a", "rejected": "b"}',
    "null.jsonl": LINES + b"null\n",
    "list.jsonl": LINES + b"[1, 2]\n",
    "nan.jsonl": LINES + json.dumps(GOOD | {"label": float("nan")}).encode(),
    "huge_number.jsonl": LINES + b'{"prompt": "p", "chosen": "a", "rejected": "b", "label": 1e999}',
    "long_number.jsonl": LINES + b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": ' + b"9" * 4000 + b"}",
    "surrogate.jsonl": LINES + b'{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}',
    "surrogate_name.jsonl": LINES + b'{"\\ud800\\n\\u001b": 1}',
    "deep_line.jsonl": LINES + b'{"prompt":' * 5_000,
    "deep_value.jsonl": LINES + b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
    "empty_response.json": json.dumps([GOOD, GOOD | {"chosen": ""}]).encode(),
    "numbers.json": b"[1, 2, 3]",
    "no_columns.parquet": table([{"x": 1}]),
    "bytes.parquet": table([{"prompt": b"p", "chosen": b"a", "rejected": b"b"}]),
    "text_label.csv": b"prompt,chosen,rejected,label\np,a,b,high\n",
}


@pytest.mark.parametrize("name", WITH_BAD_ROWS)
def test_check_finds_the_bad_row_and_split_refuses_it(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_bytes(WITH_BAD_ROWS[name])
    assert main(["data", "check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert f"    {path}" in out
    assert split(path) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [name for name, content in WITH_BAD_ROWS.items() if content.startswith(LINES[:999])])
def test_split_skips_the_bad_row_when_asked(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_bytes(WITH_BAD_ROWS[name])
    assert split(path, "--bad_rows", "skip") == 0
    assert f"1 of {20 if name == 'half_line.jsonl' else 21} rows skipped: " in capsys.readouterr().out
    assert sorted(other.name for other in tmp_path.iterdir()) == sorted([name, "train", "held_out"])
    assert main(["data", "check", str(tmp_path / "train"), str(tmp_path / "held_out")]) == 0


def split(path, *options):
    out = ["--train", str(path.with_name("train")), "--held_out", str(path.with_name("held_out"))]
    return main(["data", "split", str(path), "--fraction", "0.5", *out, *options])


@pytest.mark.parametrize("name", BROKEN)
def test_a_command_says_one_line_about_a_broken_file_and_writes_nothing(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name][0])
    for status in (main(["data", "check", str(path)]), split(path), split(path, "--bad_rows", "skip")):
        assert status in (1, 2)
    err = capsys.readouterr().err
    assert err.count("\n") in (2, 3)  # a line from each command that did not just find bad rows
    assert all(line.startswith(f"error: {path}") for line in err.splitlines())
    assert list(tmp_path.iterdir()) == [path]
