"""A run owns its folders: a lock that dies with its owner, and flags that may not change under its checkpoints."""

import json
import os
import signal
import subprocess
import sys

import pytest

from openrlhf_gpm.fingerprint import fingerprint
from openrlhf_gpm.lock import lock
from openrlhf_gpm.trainer.policy.resume import check_resume, last_checkpoint
from openrlhf_gpm.trainer.policy.run_state import own_folders

HOLD = """
import sys
from pathlib import Path
from openrlhf_gpm.lock import lock
lock(Path(sys.argv[1]) / ".run.lock", f"--ckpt.output_dir {sys.argv[1]}")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(parse, tmp_path):
    """run(*flags) -> the arguments of a run on real files below tmp_path."""
    for name in ("policy", "judge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    flags = (
        *("--actor.model_name_or_path", str(tmp_path / "policy"), "--reward.model_name_or_path"),
        *(str(tmp_path / "judge"), "--data.prompt_dataset", str(tmp_path / "prompts.jsonl"), "--ckpt.save_steps", "1"),
        *("--ckpt.output_dir", str(tmp_path / "out"), "--ckpt.path", str(tmp_path / "deepspeed")),
        *("--gpm.log_groups", str(tmp_path / "groups"), "--rollout.micro_batch_size", "1"),
    )
    return lambda *more: parse(*flags, *more)


def save_checkpoint(folder, step, ranks):
    """The names that DeepSpeed writes under ZeRO 3."""
    checkpoint = folder / "_actor" / f"global_step{step}"
    checkpoint.mkdir(parents=True)
    for rank in range(ranks):
        for kind in ("bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt", "zero_pp_rank_{}_mp_rank_00_model_states.pt"):
            (checkpoint / kind.format(rank)).touch()
    (folder / "_actor" / "latest").write_text(checkpoint.name)


def test_a_folder_is_refused_while_its_owner_lives_and_free_when_it_was_killed(tmp_path):
    folder = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "locked\n"
        second = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
        assert f"--ckpt.output_dir {folder} is in use by another run (pid {owner.pid} on " in second.stderr
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert subprocess.run(command, input="", capture_output=True, text=True, timeout=60).stdout == "locked\n"


def test_a_run_holds_every_folder_that_it_writes_to(run, tmp_path):
    own_folders(run())
    for name in ("out", "deepspeed", "groups"):
        command = [sys.executable, "-c", HOLD, str(tmp_path / name)]
        second = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
        assert f"is in use by another run (pid {os.getpid()} on " in second.stderr


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--ckpt.output_dir out cannot be written to"):
        lock(tmp_path / "file" / "out" / ".run.lock", "--ckpt.output_dir out")


def test_the_flags_of_a_run_lie_in_each_of_its_folders(run, tmp_path):
    own_folders(run("--gpo.beta", "0.5"))
    for folder in ("out", "deepspeed", "groups"):
        state = json.loads((tmp_path / folder / "run.json").read_text())
        assert state["flags"]["--gpo.beta"] == 0.5
        assert state["inputs"]["--reward.model_name_or_path"] == str(tmp_path / "judge")


@pytest.mark.parametrize(
    ("folder", "file"), [("out", "config.json"), ("deepspeed/_actor", "latest"), ("groups", "step_000001.jsonl")]
)
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpo.beta", "2"], "--gpo.beta was 1.0, is 2.0"),
        (["--rollout.n_samples_per_prompt", "4"], "--rollout.n_samples_per_prompt was 2, is 4"),
        (["--actor.policy_loss_type", "sppo"], "--actor.policy_loss_type was gpo, is sppo"),
    ],
)
def test_work_of_other_flags_is_refused_and_the_flags_are_named(run, tmp_path, folder, file, flags, said):
    own_folders(run())
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / file).write_text("global_step1")
    with pytest.raises(ValueError, match=r"holds a run with other flags: .*" + said.replace(".", r"\.")):
        own_folders(run(*flags, "--ckpt.load_enable"))


@pytest.mark.parametrize("name", ["prompts.jsonl", "judge/config.json"])
def test_an_input_whose_content_changed_is_another_input(run, tmp_path, name):
    own_folders(run())
    (tmp_path / "out" / "config.json").touch()
    (tmp_path / name).write_text('{"prompt": "b"}\n')
    with pytest.raises(ValueError, match="has changed"):
        own_folders(run("--ckpt.load_enable"))


@pytest.mark.parametrize(
    "flags",
    [
        *(["--train.enable_ema"], ["--ds.lora.dropout", "0.1"], ["--actor.adam.eps", "1e-6"], ["--train.seed", "7"]),
        *(["--actor.muon.momentum", "0.5"], ["--train.num_episodes", "2"], ["--ds.load_in_4bit"]),
    ],
)
def test_every_flag_defines_a_run_unless_it_is_known_to_be_harmless(run, tmp_path, flags):
    own_folders(run())
    (tmp_path / "out" / "config.json").touch()
    with pytest.raises(ValueError, match=f"{flags[0]} was"):
        own_folders(run(*flags, "--ckpt.load_enable"))


@pytest.mark.parametrize(
    "flags",
    [["--vllm.enforce_eager"], ["--ckpt.max_num", "9"], ["--logger.logging_steps", "2"], ["--ds.adam_offload"]],
)
def test_memory_logging_and_saving_may_change(run, tmp_path, flags):
    own_folders(run())
    (tmp_path / "out" / "config.json").touch()
    own_folders(run(*flags, "--ckpt.load_enable"))


def test_a_copy_of_a_model_is_the_same_model_and_other_weights_are_not(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(300_000))
    os.utime(tmp_path / "two" / "config.json", (1, 1))
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(bytes(299_999) + b"1")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")


def test_a_damaged_record_of_a_run_is_named(run, tmp_path):
    own_folders(run())
    (tmp_path / "out" / "config.json").touch()
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        own_folders(run("--ckpt.load_enable"))


def test_the_same_flags_go_on_and_micro_batches_may_change(run, tmp_path):
    own_folders(run())
    (tmp_path / "out" / "config.json").touch()
    own_folders(run("--ckpt.load_enable", "--rollout.micro_batch_size", "2"))


@pytest.mark.parametrize(
    ("folder", "file"), [("out", "config.json"), ("deepspeed/_actor", "latest"), ("groups", "step_000001.jsonl")]
)
def test_the_same_run_does_not_start_over_in_its_own_folders(run, tmp_path, folder, file):
    own_folders(run())
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / file).write_text("global_step1")
    with pytest.raises(ValueError, match=r"holds this very run.* pass --ckpt\.load_enable"):
        own_folders(run())


def test_a_run_that_died_before_its_first_save_leaves_its_folders_to_any_other(run, tmp_path):
    own_folders(run())
    own_folders(run("--gpo.beta", "2"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["flags"]["--gpo.beta"] == 2


def test_a_model_that_no_run_of_ours_wrote_is_not_written_over(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    with pytest.raises(ValueError, match=r"no run\.json"):
        own_folders(run())


def test_the_default_checkpoint_folder_is_free_to_runs_that_save_nothing_there(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_folders(parse("--ckpt.output_dir", "a"))
    own_folders(parse("--ckpt.output_dir", "b", "--gpo.beta", "2"))
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_checkpoint_of_another_number_of_ranks_is_refused(run, tmp_path, ranks):
    save_checkpoint(tmp_path / "deepspeed", 4, ranks=2)
    args = run("--ckpt.load_enable")
    args.actor.num_gpus_per_node = ranks
    with pytest.raises(ValueError, match=rf"global_step4 was saved by 2 ranks and this run's actor has {ranks}"):
        check_resume(args)


def test_a_checkpoint_of_as_many_ranks_is_taken_up_and_said(run, tmp_path, caplog):
    save_checkpoint(tmp_path / "deepspeed", 4, ranks=1)
    with caplog.at_level("INFO"):
        check_resume(run("--ckpt.load_enable"))
    assert "continuing from" in caplog.text
    assert last_checkpoint(tmp_path / "deepspeed").name == "global_step4"


@pytest.mark.parametrize(("killed", "why"), [(True, "killed before its first checkpoint"), (False, "a new run")])
def test_no_checkpoint_is_said_and_the_run_starts_at_step_0(run, tmp_path, caplog, killed, why):
    if killed:
        (tmp_path / "deepspeed" / "_actor" / "global_step1").mkdir(parents=True)
    with caplog.at_level("INFO"):
        check_resume(run("--ckpt.load_enable"))
    assert why in caplog.text
    assert "starting at step 0" in caplog.text


def test_a_latest_that_names_nothing_says_which_checkpoints_there_are(run, tmp_path):
    save_checkpoint(tmp_path / "deepspeed", 4, ranks=1)
    (tmp_path / "deepspeed" / "_actor" / "latest").write_text("global_step5")
    with pytest.raises(ValueError, match="names global_step5, which is not there: write one of global_step4"):
        check_resume(run("--ckpt.load_enable"))


def test_a_run_killed_while_it_wrote_latest_goes_on_from_its_newest_checkpoint(run, tmp_path, caplog):
    """DeepSpeed empties the file before it writes the name, and does so when every rank has saved."""
    for step in (9, 10):
        save_checkpoint(tmp_path / "deepspeed", step, ranks=1)
        os.utime(tmp_path / "deepspeed" / "_actor" / f"global_step{step}", (step, step))
    latest = tmp_path / "deepspeed" / "_actor" / "latest"
    latest.write_text("")
    with caplog.at_level("INFO"):
        check_resume(run("--ckpt.load_enable"))
    assert latest.read_text() == "global_step10"
    assert f"continuing from {latest.with_name('global_step10')}" in caplog.text
