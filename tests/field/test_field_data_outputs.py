"""What commands write: alone, never into or over what they read, through links, to files and folders only."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.lock import lock, release
from openrlhf_gpm.outputs import check_output, lock_file, one_writer

GROUPS = [{"id": i, "prompt": "Name a prime.", "responses": ["7", "9", "Two."]} for i in range(20)]
PAIRS = [{"prompt": f"Is {i} a prime?", "chosen": "Yes.", "rejected": "No."} for i in range(40)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def digest(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def model(tmp_path, gpm_checkpoint):
    return Path(shutil.copytree(gpm_checkpoint, tmp_path / "model"))


def commands(folder, model, output):
    """A command line for each command that writes, to one output."""
    groups, pairs = write(folder / "groups.jsonl", GROUPS), write(folder / "pairs.jsonl", PAIRS)
    return {
        "score": ["score", "--model", model, "--input", groups, "--output", output, "--device", "cpu"],
        "embed": ["embed", "--model", model, "--input", groups, "--output", output, "--device", "cpu"],
        "eval": ["eval", "--model", model, "--data", pairs, "--output", output, "--device", "cpu", "--no_plots"],
        "convert": ["convert", "--from", "gpm", "--to", "classifier", "--input", model, "--output", output],
        "winrate": [
            *("winrate", "--model", model, "--answers", f"a={groups}", f"b={groups}"),
            *("--output", output, "--device", "cpu"),
        ],
        "split": ["data", "split", pairs, "--train", output, "--held_out", folder / "rest.jsonl"],
        "merge": ["data", "merge", pairs, "--output", output],
        "cycle": ["data", "cycle", "--groups", groups, "--length", "3", "--output", output],
    }


NAMES = ["score", "embed", "eval", "convert", "winrate", "split", "merge", "cycle"]


def run(command):
    return cli.main([str(word) for word in command])


def refuse(capsys, command, *said):
    assert run(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for part in said:
        assert part in line
    return line


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_into_one_output_is_refused_and_the_first_is_whole(name, tmp_path, model, capsys):
    """The first holds the lock in a process of its own, as a running command does."""
    output = tmp_path / "out"
    command = commands(tmp_path, model, output)[name]
    hold = (
        "import sys\nfrom pathlib import Path\nfrom openrlhf_gpm.outputs import one_writer\n"
        "with one_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", hold, str(output)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        refuse(capsys, command, f"{output} is in use by another run (pid {first.pid} on ")
        first.kill()
    assert not output.exists()
    assert run(command) == 0  # the lock died with its owner
    assert not lock_file(output).exists()


def test_two_commands_at_once_give_one_whole_output(tmp_path, model):
    command = [str(word) for word in commands(tmp_path, model, tmp_path / "out")["score"]]
    write(tmp_path / "groups.jsonl", GROUPS * 150)
    argv = [sys.executable, "-m", "openrlhf_gpm.cli.main", *command]
    runs = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2]
    assert any("is in use by another run" in error for error in errors)
    lines = (tmp_path / "out").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [*range(20)] * 150


def test_a_lock_that_was_removed_while_we_opened_it_is_taken_again(tmp_path):
    file = tmp_path / ".x.lock"
    lock(file, "x")
    stale = os.open(file, os.O_RDWR)
    release(file)
    lock(file, "x")
    assert os.fstat(stale).st_ino != file.stat().st_ino or os.fstat(stale).st_nlink == 0
    release(file)
    os.close(stale)


def test_score_does_not_take_its_input_for_its_own_file(tmp_path, model, capsys):
    for name in ("out.partial", "out.partial.json", ".out.lock"):
        source = write(tmp_path / name, GROUPS)
        before = source.read_bytes()
        command = ["score", "--model", model, "--input", source, "--output", tmp_path / "out", "--device", "cpu"]
        refuse(capsys, command, "is --input")
        assert source.read_bytes() == before
        source.unlink()


def test_a_partial_of_the_user_s_is_not_deleted(tmp_path, model, capsys):
    command = commands(tmp_path, model, tmp_path / "out")["score"]
    (tmp_path / "out.partial").write_text("my notes\n")
    refuse(capsys, command, "out.partial is in the way", "move it away")
    assert (tmp_path / "out.partial").read_text() == "my notes\n"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_into_or_over_an_input(name, tmp_path, model, capsys):
    before = digest(model)
    inside = commands(tmp_path, model, model / "config.json" if name in ("score", "embed") else model / "sub")[name]
    if name in ("score", "embed", "eval", "convert", "winrate"):
        refuse(capsys, inside, "lies in", "which is only read")
    source = tmp_path / ("groups.jsonl" if name in ("score", "embed", "winrate", "cycle") else "pairs.jsonl")
    (tmp_path / "link").symlink_to(source)
    if name not in ("eval", "convert"):
        refuse(capsys, commands(tmp_path, model, tmp_path / "link")[name], "which is only read")
    assert digest(model) == before


def test_a_folder_that_holds_an_input_is_no_output(tmp_path, model, capsys):
    for name in ("eval", "convert", "winrate"):
        refuse(capsys, commands(tmp_path, model, tmp_path)[name], "contains")


@pytest.mark.parametrize("name", NAMES)
def test_devices_are_refused(name, tmp_path, model, capsys):
    for device in ("/dev/stdout", "/dev/null", "/proc/x"):
        refuse(capsys, commands(tmp_path, model, device)[name], "is a device or a part of the system")
    (tmp_path / "link").symlink_to("/dev/stdout")
    refuse(capsys, commands(tmp_path, model, tmp_path / "link")[name], "is a device")
    assert os.path.islink(tmp_path / "link")


@pytest.mark.parametrize("name", NAMES)
def test_links_are_followed(name, tmp_path, model):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real"
    if name in ("eval", "convert", "winrate"):
        target.mkdir()
    (tmp_path / "out").symlink_to(target)
    assert run(commands(tmp_path, model, tmp_path / "out")[name]) == 0
    assert os.path.islink(tmp_path / "out")
    assert target.is_dir() == (name in ("eval", "convert", "winrate"))
    assert [path.name for path in target.parent.iterdir()] == ["real"]
    assert any(target.iterdir()) if target.is_dir() else target.read_text()


def test_an_output_through_a_chain_of_links_is_found(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to(tmp_path / "c")
    assert check_output(tmp_path / "a", "--output", []) == tmp_path / "c"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((ValueError, RuntimeError, OSError)):
        check_output(tmp_path / "loop", "--output", []).open("w")


def test_a_lock_is_given_back_when_the_command_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path / "out"):
        1 / 0  # noqa: B018
    with one_writer(tmp_path / "out"):
        assert lock_file(tmp_path / "out").read_text().startswith(f"pid {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


# Scores that are used again


def adapter_on(base, folder):
    """An adapter that changes nothing, so that scores are those of its base."""
    from peft import LoraConfig, get_peft_model

    from openrlhf_gpm.checkpoints.checkpoint import load_gpm, open_checkpoint

    model = load_gpm(base)
    wrapped = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=["score", "gate"]))
    wrapped.save_pretrained(folder)
    model.config.save_pretrained(folder)
    open_checkpoint(base).tokenizer().save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))


def swap_weights(folder, seed, new_gpm):
    """Other weights of the same size and time."""
    file = folder / "model.safetensors"
    times = file.stat()
    new_gpm(seed=seed).save_pretrained(folder.with_name("other"))
    shutil.copyfile(folder.with_name("other") / "model.safetensors", file)
    os.utime(file, ns=(times.st_mtime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_scores_of_other_weights_are_not_used_again(kind, tmp_path, model, new_gpm):
    """F13: the base of an adapter, and the content, count."""
    if kind == "adapter":
        adapter_on(model, tmp_path / "adapter")

    def evaluate(output):
        source = tmp_path / "adapter" if kind == "adapter" else model
        assert run(commands(tmp_path, source, tmp_path / output)["eval"]) == 0
        result = json.loads((tmp_path / output / "metrics.json").read_text())
        return {name: result[name] for name in ("accuracy", "nll", "brier", "ece")}

    before = evaluate("kept")
    swap_weights(model, 3, new_gpm)
    after = evaluate("kept")
    assert after != before
    assert after == evaluate("fresh")
