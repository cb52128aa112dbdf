"""What runs leave: of train_rm its folders, of eval earlier results, of score ids, of `patch` staged files."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from openrlhf.cli import train_rm

from openrlhf_gpm import patching
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.lock import release
from openrlhf_gpm.trainer.reward.run_state import LOCK, own_folders

PAIRS = [{"prompt": f"Is {i} a prime?", "chosen": "Yes.", "rejected": "No."} for i in range(12)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# train_rm


@pytest.fixture
def parse(tmp_path, gpm_checkpoint):
    """parse(*flags) -> checked arguments of a train_rm run on files below tmp_path."""
    model = Path(shutil.copytree(gpm_checkpoint, tmp_path / "base"))
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    common = ["--reward_model_type", "gpm", "--model.model_name_or_path", str(model), "--data.dataset", str(data)]
    folders = ["--ckpt.output_dir", str(tmp_path / "out"), "--ckpt.path", str(tmp_path / "deepspeed")]
    return lambda *flags: train_rm.parse_args(
        [*common, *folders, "--data.max_len", "128", "--ckpt.save_steps", "1", *flags]
    )


@pytest.fixture
def own(parse, tmp_path):
    """own(*flags): take the folders as a run does, and give the locks back as its end would."""

    def take(*flags):
        try:
            own_folders(parse(*flags))
        finally:
            for name in ("out", "deepspeed"):
                if (tmp_path / name / LOCK).exists():
                    release(tmp_path / name / LOCK)

    return take


@pytest.mark.parametrize("where", ["base", "base/sub", "."])
def test_train_rm_does_not_save_over_or_into_what_it_starts_from(where, parse, tmp_path, capsys):
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        parse("--ckpt.output_dir", str(tmp_path / where))
    assert "which is only read" in capsys.readouterr().err
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


def test_a_folder_with_a_model_of_nobody_s_is_not_replaced(own, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--ckpt\.output_dir .*out holds a model .* no run\.json"):
        own()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--gpm.tau", "0.5"], "--gpm.tau was None, is 0.5"),
        (["--train.max_epochs", "7"], "--train.max_epochs was 1, is 7"),
        (["--adam.lr", "1e-3"], "--adam.lr was"),
    ],
)
def test_a_run_goes_on_with_its_own_flags_only(flags, named, own, tmp_path):
    own()
    (tmp_path / "out" / "config.json").write_text("{}")
    own("--train.micro_batch_size", "2", "--ds.zero_stage", "3", "--logger.logging_steps", "5", "--ckpt.load_enable")
    with pytest.raises(ValueError, match=named):
        own(*flags, "--ckpt.load_enable")


@pytest.mark.parametrize("changed", ["data", "model"])
def test_other_content_is_another_run(changed, own, tmp_path):
    own()
    (tmp_path / "out" / "config.json").write_text("{}")
    if changed == "data":
        write(tmp_path / "pairs.jsonl", PAIRS[1:])
    else:
        weights = tmp_path / "base" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    flag = {"data": "--data.dataset", "model": "--model.model_name_or_path"}[changed]
    with pytest.raises(ValueError, match=f"{flag} has changed"):
        own("--ckpt.load_enable")


def test_a_second_train_rm_is_refused_while_the_first_lives(parse, tmp_path):
    hold = (
        "import sys\nfrom pathlib import Path\nfrom openrlhf_gpm.lock import lock\nlock(Path(sys.argv[1]), 'first')\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", hold, str(tmp_path / "out" / LOCK)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"--ckpt\.output_dir .* in use by another run .pid {first.pid} on"):
            own_folders(parse())
        first.kill()


def test_a_checkpoint_that_was_cut_off_is_named_with_those_that_are_whole(own, tmp_path):
    """F24: torch would end with a traceback, although the checkpoint before is whole."""
    own()
    for step in (1, 2):
        folder = tmp_path / "deepspeed" / f"global_step{step}"
        folder.mkdir()
        with zipfile.ZipFile(folder / "mp_rank_00_model_states.pt", "w") as file:
            file.writestr("data", "x" * 1000)
    (tmp_path / "deepspeed" / "latest").write_text("global_step2")
    own("--ckpt.load_enable")
    newest = tmp_path / "deepspeed" / "global_step2" / "mp_rank_00_model_states.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"global_step2.* is missing or cut off: write one of global_step1 into"):
        own("--ckpt.load_enable")


# eval


def test_results_of_other_models_do_not_stay_beside_new_ones(tmp_path, gpm_checkpoint):
    """F28: two models into one folder, then one alone, then two again."""
    data, out = write(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "out"
    common = ["--data", str(data), "--output", str(out), "--device", "cpu", "--no_plots"]
    (out / "mine").mkdir(parents=True)
    assert cli.main(["eval", "--model", str(gpm_checkpoint), "length", *common]) == 0
    assert {path.name for path in out.iterdir()} == {"mine", "gpm", "length", "comparison.json", "report.md"}
    assert cli.main(["eval", "--model", "length", *common]) == 0
    assert {path.name for path in out.iterdir()} == {"mine", "scores", "metrics.json", "report.md"}
    assert cli.main(["eval", "--model", str(gpm_checkpoint), "length", *common]) == 0
    assert {path.name for path in out.iterdir()} == {"mine", "gpm", "length", "comparison.json", "report.md"}


def test_a_part_of_rewardbench_2_is_called_partial(tmp_path, capsys):
    row = {"prompt": "p", "chosen": ["right"], "rejected": ["a", "b", "c"], "subset": "Math", "id": "1"}
    data = write(tmp_path / "rb2.jsonl", [row])
    assert (
        cli.main(["eval", "--model", "length", "--data", str(data), "--output", str(tmp_path / "o"), "--no_plots"])
        == 0
    )
    assert "RewardBench 2 1.0000 (partial)" in capsys.readouterr().out


# score


def test_an_index_is_no_id_that_another_group_has(tmp_path, gpm_checkpoint, capsys):
    rows = [{"prompt": "p", "responses": ["a"]}, {"id": "0", "prompt": "p", "responses": ["a"]}]
    source = write(tmp_path / "in.jsonl", rows)
    argv = ["score", "--model", str(gpm_checkpoint), "--input", str(source), "--output", str(tmp_path / "out.jsonl")]
    assert cli.main([*argv, "--device", "cpu"]) == 2
    assert "group 0 has no id, and another's id is '0'" in capsys.readouterr().err


# Errors of the system


def test_a_full_disk_is_named_with_the_file(tmp_path, gpm_checkpoint):
    """A process whose files may not grow beyond 4 KB stands for a full disk; here the system says EFBIG."""
    rows = [{"prompt": "p", "chosen": "a" * 4000, "rejected": "b", "id": i} for i in range(10)]
    source = write(tmp_path / "in.jsonl", rows)
    code = (
        "import errno, resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from openrlhf_gpm.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    argv = [sys.executable, "-c", code, "data", "merge", str(source), "--output", str(tmp_path / "out.jsonl")]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # or half of a module's bytecode would stay
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "would grow beyond the limit" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    source = write(tmp_path / "in.jsonl", PAIRS)
    command = f"{sys.executable} -m openrlhf_gpm.cli.main data check {source} {source} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{source}\n", "")


# patch

FILES = {"openrlhf/__init__.py": "", "openrlhf/a.py": "one\n", "openrlhf/b.py": "one\n"}


@pytest.fixture
def site(tmp_path):
    """A package of three files, and a series of one patch that changes two of them."""
    folder, pristine = tmp_path / "openrlhf-1.0", tmp_path / "site"
    folder.mkdir()
    for name, text in FILES.items():
        (pristine / name).parent.mkdir(parents=True, exist_ok=True)
        (pristine / name).write_text(text)
    change = "".join(f"--- a/openrlhf/{n}.py\n+++ b/openrlhf/{n}.py\n@@ -1 +1 @@\n-one\n+two\n" for n in "ab")
    (folder / "0001.patch").write_text(change)
    (folder / "series").write_text("0001.patch\n")
    patching.write_manifest(pristine, folder)
    return pristine, patching.read_series(folder)


@pytest.mark.parametrize("action", [patching.apply, patching.revert])
def test_files_that_a_killed_run_staged_are_removed_by_the_next(action, site):
    """F25: also where there is nothing else to do."""
    folder, series = site
    left = folder / "openrlhf" / ".a.py.openrlhf-gpm"
    left.write_text("half")
    action(folder / "openrlhf", series)
    assert not left.exists()
    assert {path.name for path in folder.iterdir()} == {"openrlhf"}
    assert action(folder / "openrlhf", series) == []


def test_a_second_patch_run_is_told_of_the_first(site):
    """F26: instead of a file that is not there."""
    folder, series = site
    hold = (
        "import sys\nfrom pathlib import Path\nfrom openrlhf_gpm.outputs import one_writer\n"
        "with one_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", hold, str(folder / "openrlhf")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"openrlhf is in use by another run .pid {first.pid} on"):
            patching.apply(folder / "openrlhf", series)
        first.communicate("")
    assert patching.apply(folder / "openrlhf", series) == ["openrlhf/a.py", "openrlhf/b.py"]
    assert not os.path.exists(folder / ".openrlhf.lock")
