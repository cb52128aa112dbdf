"""Files and directories appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_gpm.files import complete_directory, growing, read_object, replace_model, replacing, write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    write(tmp_path / "a", "old é")
    write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    with pytest.raises(IsADirectoryError):
        write(tmp_path, "text")
    assert names(tmp_path) == ["a"]


def test_an_error_leaves_the_old_files_and_nothing_else(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("as it was")

    def write():
        with replacing(old, new) as files:
            for file in files:
                file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "as it was"


def test_files_appear_when_all_are_complete(tmp_path):
    with replacing(tmp_path / "a", tmp_path / "b") as files:
        for file in files:
            file.write("whole")
        assert not (tmp_path / "a").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "whole"


def test_a_growing_file_stays_partial_until_it_is_complete(tmp_path):
    partial, whole = tmp_path / "out.partial", tmp_path / "out"

    def add(text, error=None):
        with growing(partial, whole) as file:
            file.write(text)
            if error:
                raise error

    with pytest.raises(RuntimeError):
        add("one\n", RuntimeError())
    assert names(tmp_path) == ["out.partial"]
    add("two\n")
    assert names(tmp_path) == ["out"]
    assert whole.read_text() == "one\ntwo\n"


def test_a_directory_is_replaced_whole_and_an_error_leaves_the_old_one(tmp_path):
    def fill(name, error=None):
        with complete_directory(tmp_path / "deep" / "out") as new:
            (new / name).write_text("x")
            if error:
                raise error

    fill("a")
    fill("b")
    assert names(tmp_path / "deep" / "out") == ["b"]
    with pytest.raises(KeyboardInterrupt):
        fill("c", KeyboardInterrupt())
    assert names(tmp_path / "deep" / "out") == ["b"]
    assert names(tmp_path / "deep") == ["out"]


KILLED = """
import os, sys
from pathlib import Path
from openrlhf_gpm.files import complete_directory
with complete_directory(Path(sys.argv[1])) as new:
    (new / "half").write_text("x")
    print(new, flush=True)
    sys.stdin.readline()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        half = Path(other.stdout.readline().strip())
        with complete_directory(tmp_path / "out") as new:
            (new / "whole").touch()
        assert (half / "half").exists()
        other.kill()
    assert half.exists()
    with complete_directory(tmp_path / "out") as new:
        (new / "more").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["more"]


def test_at_no_moment_is_there_no_directory(tmp_path):
    """A process that replaces a directory again and again is looked at as often as possible."""
    script = """
import sys
from pathlib import Path
from openrlhf_gpm.files import complete_directory
path = Path(sys.argv[1])
for _ in range(300):
    with complete_directory(path) as new:
        (new / "file").touch()
"""
    (tmp_path / "out").mkdir()
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")]) as other:
        while other.poll() is None:
            os.stat(tmp_path / "out")
    assert other.returncode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "c.json does not exist: give one"),
        (b"{", "c.json is not JSON .*: copy or save it again"),
        (b"\xff", "c.json is not JSON .*: copy or save it again"),
        (b"[1]", "c.json must hold a JSON object: copy or save it again"),
    ],
)
def test_wrong_json_is_one_line_with_its_remedy(tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_object(tmp_path / "c.json", "give one")
    assert "\n" not in str(error.value)


def test_a_model_replaces_an_older_one_with_its_folders_and_leaves_checkpoints(tmp_path):
    path = tmp_path / "policy"
    for step in ("old", "new"):
        new = path / ".new"
        (new / "templates").mkdir(parents=True)
        for name in ("config.json", f"model-{step}.safetensors", "templates/tool.jinja"):
            (new / name).write_text(step)
        (path / "deepspeed").mkdir(exist_ok=True)
        replace_model(new, path)
    found = sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    assert found == ["config.json", "deepspeed", "model-new.safetensors", "templates", "templates/tool.jinja"]
    assert (path / "templates" / "tool.jinja").read_text() == "new"
