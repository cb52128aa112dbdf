"""Groups of responses from JSONL files."""

import json
import subprocess
import sys

import pytest

from openrlhf_gpm.data import Group, normalise_group, read_groups

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


def write(tmp_path, *lines):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines))
    return path


def test_groups_come_in_file_order_with_their_line_numbers(tmp_path):
    path = write(
        tmp_path,
        {"id": "q1", "prompt": "2 + 2?", "responses": ["4", "5", ""]},
        b"",
        {"prompt": MESSAGES, "responses": ["4"], "extra": 1},
        {"id": 7, "prompt": "", "responses": ["a", "a"]},
        b"",
    )
    assert list(read_groups(path)) == [
        (f"{path}:1", Group("2 + 2?", ["4", "5", ""], "q1")),
        (f"{path}:3", Group(MESSAGES, ["4"], None)),
        (f"{path}:4", Group("", ["a", "a"], 7)),
    ]


def test_windows_line_ends_a_byte_order_mark_and_line_separators_in_text_are_read(tmp_path):
    line = '{"prompt": "é\u2028", "responses": ["\x85"]}'.encode()
    path = write(tmp_path, b"\xef\xbb\xbf" + line + b"\r", line + b"\r")
    assert [group for _, group in read_groups(str(path))] == [Group("é\u2028", ["\x85"])] * 2


def test_a_file_without_groups_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"in.jsonl is empty"):
        list(read_groups(write(tmp_path)))
    with pytest.raises(ValueError, match=r"in.jsonl holds no rows"):
        list(read_groups(write(tmp_path, b"\n")))


GOOD = {"prompt": "p", "responses": ["a"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "p", ', "not valid JSON .* at column 1[67].*; each line must be one whole JSON object"),
        (b"[", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8 .*; convert the file to UTF-8"),
        ([GOOD], 'expected a JSON object, got a list; a group is {"id": optional'),
        ("p", "expected a JSON object, got text"),
        ({"responses": ["a"]}, r"'prompt' is missing \(there is: responses\); a group is"),
        ({"prompt": "p", "response": "a"}, r"'responses' is missing \(there is: prompt, response\); a group is"),
        (GOOD | {"responses": None}, "'responses' is missing"),
        (GOOD | {"responses": []}, "'responses' is empty; give at least one response"),
        (GOOD | {"responses": "a"}, "'responses' must be a list of texts, got text"),
        (GOOD | {"responses": ["a", 3]}, r"'responses'\[1\] must be text, got a number"),
        (GOOD | {"responses": [["a"]]}, r"'responses'\[0\] must be text, got a list"),
        (GOOD | {"responses": [True]}, r"'responses'\[0\] must be text, got a boolean"),
        (GOOD | {"responses": ["\udc00"]}, r"'responses'\[0\] has half a surrogate pair"),
        (GOOD | {"prompt": 3}, "'prompt' must be text or a list of messages, got a number"),
        (
            GOOD | {"prompt": {"role": "user", "content": "p"}},
            "'prompt' must be text or a list of messages, got an obj",
        ),
        (GOOD | {"prompt": []}, "'prompt' is an empty list of messages"),
        (GOOD | {"prompt": ["p"]}, r"'prompt'\[0\] must be a message, {'role': text, 'content': text}"),
        (
            GOOD | {"prompt": [{"role": "user", "content": ["p"]}]},
            r"'content' of 'prompt'\[0\] must be text, got a list",
        ),
        (
            GOOD | {"prompt": [*MESSAGES, {"role": "assistant", "content": "4"}]},
            "must not end with an assistant message",
        ),
    ],
)
def test_a_bad_line_is_refused_with_its_place_and_a_remedy(tmp_path, line, message):
    path = write(tmp_path, GOOD, b"", line, GOOD)
    groups = read_groups(path)
    assert next(groups) == (f"{path}:1", Group("p", ["a"]))
    with pytest.raises(ValueError, match=message) as caught:
        next(groups)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        next(read_groups(tmp_path / "absent.jsonl"))


def test_a_group_can_be_read_without_a_file():
    assert normalise_group({"id": [1], "prompt": MESSAGES, "responses": ["x", "y"]}) == Group(
        MESSAGES, ["x", "y"], [1]
    )


def test_reading_data_needs_neither_torch_nor_transformers():
    code = "import sys, openrlhf_gpm.data; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
