"""Bad rows are refused, or counted and skipped when that is asked for; never dropped silently."""

import json

import pytest

from openrlhf_gpm.data import BadRow, BadRows, read_preferences

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
LINES = [
    GOOD,
    GOOD | {"chosen": ""},
    "not an object",
    GOOD | {"label": 2},
    GOOD | {"rejected": " "},
    GOOD,
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(json.dumps(line).encode() for line in LINES) + b'\n{"half\n\xff\n')
    return path


def test_the_first_bad_row_is_refused_with_its_place(path):
    groups = read_preferences(path)
    next(groups)
    with pytest.raises(ValueError, match=r"in\.jsonl:2: 'chosen' is an empty response"):
        next(groups)


def test_skipped_rows_are_counted_by_kind_with_their_places(path):
    report = BadRows()
    groups = list(read_preferences(path, on_bad="skip", report=report))
    assert [where for where, _ in groups] == [f"{path}:1", f"{path}:6"]
    assert (report.rows, report.count) == (8, 6)
    assert report.by_kind() == {
        "empty response": [f"{path}:2", f"{path}:5"],
        "not an object": [f"{path}:3"],
        "label outside [0, 1]": [f"{path}:4"],
        "not JSON": [f"{path}:7"],
        "not UTF-8": [f"{path}:8"],
    }
    assert report.summary() == (
        f"6 of 8 rows skipped: 2 empty response ({path}:2, {path}:5), 1 not an object ({path}:3), "
        f"1 label outside [0, 1] ({path}:4), 1 not JSON ({path}:7), 1 not UTF-8 ({path}:8)"
    )
    assert report.found[0][2] == "'chosen' is an empty response; drop the row or fill it"


def test_refused_rows_are_in_the_report_too(path):
    report = BadRows()
    with pytest.raises(ValueError, match="empty response"):
        list(read_preferences(path, report=report))
    assert (report.rows, report.count) == (2, 1)


def test_a_summary_names_the_first_places_of_a_kind_only():
    report = BadRows()
    for line in range(1, 10):
        report.add(f"f:{line}", BadRow("empty response", "long text"))
    report.add("f:20", "written by hand")
    assert report.summary() == (
        "10 of 10 rows skipped: 9 empty response (f:1, f:2, f:3, ...), 1 written by hand (f:20)"
    )


def test_a_report_of_no_bad_row_says_so():
    report = BadRows()
    report.rows = 828
    assert report.summary() == "no bad row among 828"


def test_a_broken_file_is_not_skipped(tmp_path):
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="is a broken parquet file"):
        list(read_preferences(path, on_bad="skip"))


def test_over_long_rows_are_bad_where_a_limit_is_given(tmp_path):
    path = tmp_path / "in.jsonl"
    turns = [{"role": "system", "content": "ab"}, {"role": "user", "content": "cd"}]
    path.write_text(json.dumps({"prompt": turns, "chosen": "efg", "rejected": "hijk"}))
    assert len(list(read_preferences(path, max_chars=8))) == 1
    with pytest.raises(ValueError, match=r"in\.jsonl:1: prompt and response have 8 characters, more than 7"):
        list(read_preferences(path, max_chars=7))


def test_there_are_two_ways_with_bad_rows(path):
    with pytest.raises(ValueError, match="on_bad must be 'refuse' or 'skip', got 'ignore'"):
        read_preferences(path, on_bad="ignore")
