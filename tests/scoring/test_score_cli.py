import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.scoring.options import DTYPES
from openrlhf_gpm.scoring.scorer import GPM
from openrlhf_gpm.scoring.store import model_key

ROOT = Path(cli.__file__).parents[2]
LINES = [
    {"id": "q1", "prompt": "Name a prime.", "responses": ["Seven.", "Nine.", "7"]},
    {"id": 7, "prompt": [{"role": "user", "content": "Hello"}], "responses": ["Fine.", "Grüße, 你好"]},
    {"prompt": "What is the capital of France?", "responses": ["Paris."]},
    {"id": {"set": "a", "n": 1}, "prompt": "Hello", "responses": ["", "Fine! " * 30]},
]


@pytest.fixture
def job(tmp_path, gpm_checkpoint):
    """The arguments of a run, and its input file."""
    folder = tmp_path / "run"
    folder.mkdir()
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return ["score", "--model", str(gpm_checkpoint), "--input", str(source), "--output", str(out), "--device", "cpu"]


def option(job, name):
    return Path(job[job.index(name) + 1])


def results(job):
    return [json.loads(line) for line in option(job, "--output").read_text(encoding="utf-8").splitlines()]


def files(job):
    return sorted(path.name for path in option(job, "--output").parent.iterdir())


def fails(capsys, job, *message):
    """The run exits with 2 and one line on stderr that holds the message; no output, no traces."""
    assert cli.main(job) == 2
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in err
    for part in message:
        assert part in line
    return line


def test_score_writes_what_gpm_score_says_in_the_order_of_the_input(job, gpm_checkpoint, capsys):
    assert cli.main(job) == 0
    assert files(job) == ["in.jsonl", "out.jsonl"]
    written = results(job)
    assert [result["id"] for result in written] == ["q1", 7, "2", {"set": "a", "n": 1}]
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu")
    for result, line in zip(written, LINES, strict=True):
        expected = gpm.score(line["prompt"], line["responses"])
        assert list(result) == list(expected)
        assert result["ranking"] == expected["ranking"]
        scores = torch.tensor(result["scores"])
        torch.testing.assert_close(scores, torch.tensor(expected["scores"]), atol=1e-5, rtol=0)
        torch.testing.assert_close(scores, -scores.T, atol=1e-5, rtol=0)
    assert "4 groups scored" in capsys.readouterr().out


def test_an_ungated_model_writes_gate_null(job, new_gpm, chat_tokenizer, tmp_path):
    from openrlhf_gpm.checkpoints.checkpoint import save_gpm

    save_gpm(new_gpm(gate="none"), chat_tokenizer, tmp_path / "plain")
    job[job.index("--model") + 1] = str(tmp_path / "plain")
    assert cli.main(job) == 0
    assert all(result["gate"] is None for result in results(job))


def test_an_older_output_is_replaced(job):
    option(job, "--output").write_text("old\n")
    assert cli.main(job) == 0
    assert len(results(job)) == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_the_help_is_one_of_torchs(dtype):
    assert isinstance(getattr(torch, DTYPES[dtype]), torch.dtype)


# Interrupted runs


def break_off_at(job, n):
    """A real run that fails at group n, because the weights of a token that no earlier group has are not numbers.

    Afterwards the model is whole again, and the run's key says so, as if the run had been killed.
    """
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(option(job, "--model"), option(job, "--output").parents[1] / "model")
    job[job.index("--model") + 1] = str(model)
    formatter = open_checkpoint(model).formatter()
    tokens = [{t for r in line["responses"] for t in formatter.encode(line["prompt"], r).input_ids} for line in LINES]
    new_here = tokens[n] - set.union(*tokens[:n])
    file = model / "model.safetensors"
    whole = file.read_bytes()
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][new_here.pop()] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    assert cli.main([*job, "--batch_tokens", "1"]) == 2
    file.write_bytes(whole)
    key_file = Path(f"{option(job, '--output')}.partial.json")
    key_file.write_text(json.dumps(json.loads(key_file.read_text()) | model_key(model)))


def test_a_run_that_breaks_off_leaves_no_output_and_is_continued(job, capsys):
    assert cli.main(job) == 0
    whole = results(job)
    option(job, "--output").unlink()
    break_off_at(job, 2)
    assert "group '2': the model's embeddings are not finite" in capsys.readouterr().err
    assert files(job) == ["in.jsonl", "out.jsonl.partial", "out.jsonl.partial.json"]
    assert cli.main(job) == 0
    assert "2 of 4 groups are done" in capsys.readouterr().err
    assert files(job) == ["in.jsonl", "out.jsonl"]
    for result, expected in zip(results(job), whole, strict=True):
        assert result["id"] == expected["id"]
        torch.testing.assert_close(torch.tensor(result["scores"]), torch.tensor(expected["scores"]), atol=1e-5, rtol=0)


def test_ctrl_c_ends_with_130_and_the_run_is_continued(job, capsys):
    option(job, "--input").write_text((json.dumps(LINES[0]) + "\n") * 1500)
    command = [sys.executable, "-m", "openrlhf_gpm.cli.main", *job, "--batch_tokens", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs deaf to it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=heed) as run:
        err = ""
        while not re.search(r" [1-9]\d*/1500", err):
            err += run.stderr.read(1)
            assert run.poll() is None, err
        run.send_signal(signal.SIGINT)
        err = run.stderr.read()
    assert run.returncode == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert files(job) == ["in.jsonl", "out.jsonl.partial", "out.jsonl.partial.json"]
    assert cli.main(job) == 0
    assert re.search(r"continuing .*out.jsonl.partial: [1-9]\d* of 1500 groups are done", capsys.readouterr().err)
    assert len(results(job)) == 1500


def test_only_the_missing_groups_are_scored_again(job):
    break_off_at(job, 3)
    partial = Path(f"{option(job, '--output')}.partial")
    first = json.loads(partial.read_text(encoding="utf-8").splitlines()[0])
    marked = json.dumps(first | {"id": "kept"})
    partial.write_text(
        "\n".join([marked, *partial.read_text(encoding="utf-8").splitlines()[1:]]) + "\n", encoding="utf-8"
    )
    assert cli.main(job) == 0
    assert [result["id"] for result in results(job)] == ["kept", 7, "2", {"set": "a", "n": 1}]


def test_a_run_killed_within_a_line_is_continued_before_that_line(job):
    break_off_at(job, 3)
    partial = Path(f"{option(job, '--output')}.partial")
    partial.write_bytes(partial.read_bytes()[:-20])
    assert cli.main(job) == 0
    assert [result["id"] for result in results(job)] == ["q1", 7, "2", {"set": "a", "n": 1}]


@pytest.mark.parametrize("change", ["--input", "--dtype", "--model", "key"])
def test_a_partial_output_of_something_else_is_not_continued(job, capsys, change):
    break_off_at(job, 2)
    kept = Path(f"{option(job, '--output')}.partial").read_bytes()
    if change == "--input":
        option(job, "--input").write_text(json.dumps(LINES[2]) + "\n")
    elif change == "--dtype":
        job += ["--dtype", "bf16"]
    elif change == "--model":
        weights = option(job, "--model") / "model.safetensors"
        content, times = bytearray(weights.read_bytes()), weights.stat()
        content[-1] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(times.st_mtime_ns, times.st_mtime_ns))  # size and time say nothing of it
    else:
        Path(f"{option(job, '--output')}.partial.json").write_text("{")
    capsys.readouterr()
    said = {
        "--input": "is of another run: --input has changed",
        "--dtype": "is of another run: --dtype was None, is bf16",
        "--model": "is of another run: --model has changed",
        "key": "nothing says that it is part of out.jsonl",
    }
    fails(capsys, job, "out.jsonl.partial", said[change])
    assert Path(f"{option(job, '--output')}.partial").read_bytes() == kept


# Wrong input


def test_a_wrong_line_is_named_before_anything_is_written(job, capsys):
    with open(option(job, "--input"), "a") as file:
        file.write('{"prompt": "Hello"}\n')
    fails(capsys, job, "in.jsonl:5: ", "'responses' is missing")
    assert files(job) == ["in.jsonl"]


def test_a_prompt_that_is_too_long_is_named_by_line_and_response(job, capsys, new_gpm, chat_tokenizer, tmp_path):
    from openrlhf_gpm.checkpoints.checkpoint import save_gpm

    save_gpm(new_gpm(max_len=30), chat_tokenizer, tmp_path / "short")
    job[job.index("--model") + 1] = str(tmp_path / "short")
    long = {"prompt": "Hello, how are you? " * 20, "responses": ["Fine."]}
    option(job, "--input").write_text(json.dumps(LINES[0]) + "\n\n" + json.dumps(long) + "\n")
    fails(capsys, job, "in.jsonl:3: responses[0]: the prompt has ", "no room", "--data.max_len")


def test_an_empty_file_is_an_error(job, capsys):
    option(job, "--input").write_text("\n")
    fails(capsys, job, "in.jsonl holds no rows")


def test_a_wrong_model_is_an_error_in_one_line(job, capsys, tmp_path):
    job[job.index("--model") + 1] = str(tmp_path / "nowhere")
    fails(capsys, job, "nowhere is not a directory")


def test_wrong_paths_are_named_with_their_flag(job, capsys, tmp_path):
    def with_option(name, value):
        changed = list(job)
        changed[changed.index(name) + 1] = str(value)
        return changed

    fails(capsys, with_option("--input", tmp_path / "none.jsonl"), "--input", "none.jsonl is not a file")
    fails(capsys, with_option("--output", tmp_path), "--output", "is a directory")
    fails(capsys, with_option("--output", tmp_path / "no" / "out.jsonl"), "--output", "does not exist, create it")
    fails(capsys, with_option("--output", option(job, "--input")), "--output", "is --input")
    fails(capsys, [*job, "--batch_tokens", "0"], "--batch_tokens must be >= 1, got 0")
    os.mkfifo(tmp_path / "pipe")
    fails(capsys, with_option("--output", tmp_path / "pipe"), "--output", "not a regular file")


@pytest.mark.parametrize("device", ["gpu", "cuda:64", "cpu:x"])
def test_a_device_that_is_not_there_is_named(job, capsys, device):
    fails(capsys, [*job, "--device", device], f"--device {device}")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", {"num_attention_heads": 7}, "config.json: transformers cannot read it"),
        ("config.json", {"hidden_size": "x"}, "config.json: transformers cannot read it"),
        ("tokenizer.json", {"model": {"type": "unknown"}}, "no tokenizer that transformers can read"),
    ],
    ids=str,
)
def test_a_damaged_file_of_the_checkpoint_is_one_line(job, capsys, gpm_checkpoint, tmp_path, file, text, message):
    broken = tmp_path / "broken"
    shutil.copytree(gpm_checkpoint, broken)
    content = json.loads((broken / file).read_text()) | text
    (broken / file).write_text(json.dumps(content))
    job[job.index("--model") + 1] = str(broken)
    fails(capsys, job, message)


# The command itself


def test_help_lists_the_commands_and_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in (*cli.COMMANDS, "--reward_model_type gpm", "openrlhf-gpm score --model"):
        assert word in text
    with pytest.raises(SystemExit):
        cli.main(["score", "--help"])
    text = capsys.readouterr().out
    for word in ("--input groups.jsonl", '"responses": [', "von_neumann", "cyclic_share", "OUTPUT.partial"):
        assert word in text


def test_the_groups_in_the_help_are_valid_input(capsys, tmp_path):
    from openrlhf_gpm.cli.score import EXAMPLE
    from openrlhf_gpm.data import read_groups

    lines = [line for line in EXAMPLE.splitlines() if line.startswith("  {")]
    (tmp_path / "groups.jsonl").write_text("\n".join(lines))
    assert [len(group.responses) for _, group in read_groups(tmp_path / "groups.jsonl")] == [3, 1]


def test_help_is_fast_and_loads_nothing_heavy():
    code = "import sys; from openrlhf_gpm.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'transformers', 'ray', 'openrlhf') if name in sys.modules])"
    for words in (["--help"], ["score", "--help"]):
        start = time.perf_counter()
        out = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert out.stdout.endswith("[]\n"), out.stderr
        assert time.perf_counter() - start < 3


def test_a_command_whose_dependency_is_missing_does_not_break_the_others(job, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openrlhf_gpm.cli.doctor", None)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "cannot start: " in capsys.readouterr().out
    fails(capsys, ["doctor", "--anything"], "openrlhf_gpm.cli.doctor")
    assert cli.main(job) == 0


@pytest.mark.parametrize("words", [[], ["nonsense"], ["score"], ["score", "--model", "m", "--no_such_flag"]])
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "usage: openrlhf-gpm" in capsys.readouterr().err


def test_an_unknown_flag_is_named(job, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*job, "--no_such_flag"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --no_such_flag" in capsys.readouterr().err


def test_debug_shows_the_traceback(job, tmp_path):
    job[job.index("--model") + 1] = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        cli.main(["--debug", *job])


def test_version(capsys):
    import openrlhf_gpm

    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"openrlhf-gpm {openrlhf_gpm.__version__}\n"


def test_the_module_runs_as_a_program(job):
    """The console script, in a process of its own: the exit status and one line on stderr reach the shell."""
    job[job.index("--input") + 1] = "none.jsonl"
    out = subprocess.run(
        [sys.executable, "-m", "openrlhf_gpm.cli.main", *job],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert out.returncode == 2
    assert out.stderr == "error: --input none.jsonl is not a file: give a file of groups\n"
