"""`openrlhf-gpm convert`: what the user types, reads and gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_gpm.cli.main import build_parser, main


def test_a_gpm_becomes_a_classifier_and_a_gpm_again(gpm_checkpoint, tmp_path, capsys):
    words = ["convert", "--from", "gpm", "--to", "classifier", "--input", str(gpm_checkpoint)]
    assert main([*words, "--output", str(tmp_path / "classifier")]) == 0
    out = capsys.readouterr().out
    assert "LlamaForSequenceClassification, 9 labels: 6 of the head, 3 of the gate (run the prompt alone)" in out
    assert f"converted: {tmp_path / 'classifier'}" in out
    words = ["convert", "--from", "classifier", "--input", str(tmp_path / "classifier")]
    assert main([*words, "--output", str(tmp_path / "back")]) == 0
    for file in gpm_checkpoint.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "authors", "--input", "GPM"], "is a GPM already (`gpm` in config.json): use --from gpm"),
        (["--from", "gpm", "--input", "GPM"], "--from gpm --to gpm changes nothing"),
        (["--from", "bt", "--input", "GPM", "--normalize"], "--normalize and --no-normalize are for --from authors"),
        (["--from", "bt", "--input", "nowhere"], "--input nowhere is not a directory"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(gpm_checkpoint, tmp_path, capsys, words, message):
    words = [str(gpm_checkpoint) if word == "GPM" else word for word in words]
    assert main(["convert", *words, "--output", str(tmp_path / "new")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flags", "want"), [([], None), (["--normalize"], True), (["--no-normalize"], False)])
def test_normalisation_is_given_denied_or_left_open(flags, want):
    words = ["convert", "--from", "authors", "--input", "a", "--output", "b", *flags]
    args = build_parser(["convert"]).parse_args(words)
    assert (args.normalize, args.to, args.tau) == (want, "gpm", None)


def test_help_loads_nothing_heavy_and_knows_every_layout_that_the_code_knows(flags_of):
    from openrlhf_gpm.checkpoints.convert import SOURCES, TARGETS

    code = (
        "import sys; from openrlhf_gpm.cli.main import build_parser; build_parser(['convert']); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert json.loads(out.replace("'", '"')) == []
    flags = flags_of(build_parser(["convert"]))
    assert (tuple(flags["--from"].choices), tuple(flags["--to"].choices)) == (SOURCES, TARGETS)
