"""Whatever is in a file, `openrlhf-gpm data` ends with 0, 1 or 2, at most one line of error and no half of a file."""

import gzip
import io
import json
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pyarrow
import pyarrow.parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf_gpm.cli.main import main

SUFFIXES = [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".tsv", ".txt"]
fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def run(*argv):
    """(status, stdout, stderr), with the strict UTF-8 of a real terminal."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["data", *map(str, argv)])
    for stream in (out, err):
        stream.flush()
    return status, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def survive(suffix, content):
    """Check and split a file of this content; what was split is checked again."""
    with tempfile.TemporaryDirectory() as folder:
        path, train, held_out = (Path(folder) / name for name in (f"in{suffix}", "train.jsonl", "held_out.jsonl"))
        path.write_bytes(content)
        found, _, err = run("check", path)
        assert (found == 2) == bool(err)
        assert err.count("\n") <= 1
        for on_bad in ("refuse", "skip"):
            argv = ["split", path, "--fraction", 0.5, "--train", train, "--held_out", held_out, "--bad_rows", on_bad]
            status, _, err = run(*argv)
            assert status in (0, 2)
            assert (status == 2) == bool(err)
            assert err.count("\n") <= 1
            if status == 0:
                assert found in ((0,) if on_bad == "refuse" else (0, 1))
                again, out, _ = run("check", train, held_out)
                assert again == 0
                assert f"shared prompts        0 with {train}" in out
                train.unlink()
                held_out.unlink()
            assert [other.name for other in Path(folder).iterdir()] == [path.name]


any_text = st.text(max_size=8) | st.sampled_from(["", " ", "a", "\ud800", "\x00", "é", "[", "=1+1", "\u2028\r\n"])
any_number = st.floats() | st.integers() | st.sampled_from([10**400, -(10**400), 0.5, -1, 2, 1e308, 2**63, 0, 1])
scalars = st.none() | st.booleans() | any_number | any_text
COLUMNS = [
    *("prompt", "instruction", "chosen", "rejected", "reject", "responses", "completions", "scores", "ranks"),
    *("comparisons", "ratings", "annotations", "response", "Rating", "label", "margin", "log_odds", "id", "subset"),
    *("system", "role", "content", "first", "second"),
]
names = st.sampled_from(COLUMNS) | any_text
any_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5), max_leaves=12
)

user, bot = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
VALID = [
    {"prompt": "p", "chosen": "a", "rejected": "b", "label": 0.9, "margin": 1, "log_odds": 2, "id": 1, "subset": "s"},
    {"prompt": [user, bot, user], "chosen": [bot], "rejected": {**bot, "content": "5"}, "system": "Be brief."},
    {"chosen": [user, bot], "rejected": [user, {"role": "assistant", "content": "5"}]},
    {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
    {"instruction": "p", "chosen": {"response": "a"}, "reject": {"response": "b"}},
    {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 2], "ranks": [2, 1, 1]},
    {"prompt": "p", "responses": ["a", "b", "c"], "comparisons": [[0, 1], [1, 2, 0.5], {"first": 2, "second": 0}]},
    {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "num_correct": 2},
    {"prompt": "p", "responses": ["a", "b"], "ratings": {"x": [1, 2], "y": ["3", None]}},
    {"instruction": "p", "completions": [{"response": t, "annotations": {"x": {"Rating": "1"}}} for t in "ab"]},
]


def places(value, path=()):
    """Every place in a nested value, the value itself last."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))
    yield path


@st.composite
def mutated_rows(draw):
    """A valid row, of which some nested values are replaced or taken out."""
    row = json.loads(json.dumps(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(list(places(row))))
        if not path:
            return draw(any_json)
        inner = row
        for key in path[:-1]:
            inner = inner[key]
        if draw(st.booleans()):
            inner[path[-1]] = draw(any_json)
        else:
            del inner[path[-1]]
    return row


@fuzz
@given(st.sampled_from(SUFFIXES), st.binary(max_size=200))
def test_random_bytes(suffix, content):
    survive(suffix, content)


@fuzz
@given(st.lists(any_json, max_size=4), st.booleans())
def test_random_json(values, lines):
    survive(
        *(".jsonl", b"\n".join(json.dumps(v).encode() for v in values))
        if lines
        else (".json", json.dumps(values).encode())
    )


@fuzz
@given(st.lists(mutated_rows(), min_size=1, max_size=8))
def test_rows_that_are_almost_right(rows):
    survive(".jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))


@fuzz
@given(
    st.lists(st.lists(any_text.filter(lambda t: "\ud800" not in t), max_size=5), max_size=4),
    st.sampled_from([".csv", ".tsv"]),
)
def test_random_cells(rows, suffix):
    comma = "," if suffix == ".csv" else "\t"
    head = comma.join(["prompt", "chosen", "rejected", "label"])
    survive(suffix, "\n".join([head, *map(comma.join, rows)]).encode("utf-8", "replace"))


def parquet():
    sink = io.BytesIO()
    rows = [{"prompt": [user], "chosen": f"a{i}", "rejected": "b", "label": 0.5} for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


LINES = b"".join(json.dumps(row).encode() + b"\n" for row in VALID)
WHOLE = {
    ".jsonl": LINES,
    ".jsonl.gz": gzip.compress(LINES),
    ".json": json.dumps(VALID).encode(),
    ".parquet": parquet(),
    ".csv": b'prompt,chosen,rejected,label\np,a,b,1\nq,"c, d",e,0.5\n',
}


def test_the_whole_files_are_read():
    for suffix, content in WHOLE.items():
        survive(suffix, content)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"in{suffix}"
            path.write_bytes(content)
            assert run("check", path)[0] == 0


@fuzz
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_files_with_bytes_changed_or_cut_off(suffix, data):
    content = bytearray(WHOLE[suffix])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survive(suffix, bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]))
