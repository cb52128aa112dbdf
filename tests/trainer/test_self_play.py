"""The driver of several passes: what it plans, refuses and skips, and how it ends. No test here starts Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from openrlhf_gpm.cli.main import main
from openrlhf_gpm.trainer.policy.run_state import run_state
from openrlhf_gpm.trainer.self_play import Pass, plan, unfinished, with_history, with_reference

HANGS = 60  # seconds: a process that has not ended by then never will
SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A policy, a reward model and prompts for two passes."""
    save_model(tmp_path / "policy")
    save_model(tmp_path / "judge")
    for number in (1, 2):
        (tmp_path / f"prompts{number}.jsonl").write_text(json.dumps({"prompt": f"{number}"}) + "\n")
    return tmp_path


@pytest.fixture
def flags(world: Path) -> list[str]:
    """A GPO run with a Bradley-Terry reward."""
    return [
        *("--actor.model_name_or_path", f"{world}/policy", "--reward.model_name_or_path", f"{world}/judge"),
        *("--actor.policy_loss_type", "gpo", "--algo.kl.init_coef", "0", "--actor.num_gpus_per_node", "1"),
        *("--rollout.n_samples_per_prompt", "2", "--rollout.batch_size", "2", "--train.batch_size", "2"),
        *("--rollout.micro_batch_size", "1", "--train.micro_batch_size", "1", "--vllm.num_engines", "1"),
        *("--data.prompt_dataset", f"{world}/prompts{{pass}}.jsonl", "--data.input_key", "prompt"),
    ]


def arguments(world: Path, *flags: str) -> list[str]:
    return ["self-play", "--passes", "2", "--output", str(world / "out"), "--", *flags]


def self_play(world: Path, *flags: str) -> int:
    """The exit status of the command, run in this process; argparse and OpenRLHF's checks end it by SystemExit."""
    try:
        return main(arguments(world, *flags))
    except SystemExit as ended:
        return int(ended.code or 0)


def finish(each: Pass) -> None:
    """Leave what a pass leaves that was trained and killed before its checkpoints were removed."""
    from openrlhf.cli.train_ppo_ray import parse_args

    each.checkpoints.mkdir(parents=True)
    state = run_state(parse_args(list(each.flags)))
    save_model(each.folder)
    (each.folder / "run.json").write_text(json.dumps(state))


def test_each_pass_has_its_own_prompts_and_starts_from_the_one_before(tmp_path):
    first, second = plan(["--data.prompt_dataset", "iter{pass}", "--actor.model_name_or_path", "start"], 2, tmp_path)
    assert first.flags == (
        *("--data.prompt_dataset", "iter1", "--actor.model_name_or_path", "start"),
        *("--ckpt.output_dir", f"{tmp_path}/pass1", "--ckpt.path", f"{tmp_path}/pass1/deepspeed"),
        "--ckpt.load_enable",
    )
    assert second.flags[1] == "iter2"
    assert second.flags[-2:] == ("--actor.model_name_or_path", f"{tmp_path}/pass1")


def test_the_groups_are_logged_per_pass_where_a_report_needs_them(tmp_path):
    passes = plan(["--actor.model_name_or_path", "start"], 2, tmp_path, log_groups=True)
    for number, each in enumerate(passes, start=1):
        assert each.flags[2:4] == ("--gpm.log_groups", f"{tmp_path}/pass{number}/groups")
    (own,) = plan(["--actor.model_name_or_path", "start", "--gpm.log_groups", "mine"], 1, tmp_path, log_groups=True)
    assert own.flags.count("--gpm.log_groups") == 1


def test_every_pass_has_the_reference_of_the_first_where_the_objective_needs_one(world, flags):
    ours = ("--actor.policy_loss_type", "gpo", "--gpo.pull", "0.1", "--gpo.magnet")
    plain = plan([*flags, *ours, "ema"], 2, world / "out")
    assert with_reference(plain) == plain
    first, second = with_reference(plan([*flags, *ours, "ref"], 2, world / "out"))
    start = first.flags[first.flags.index("--actor.model_name_or_path") + 1]
    assert first.flags[-2:] == second.flags[-2:] == ("--frozen.ref", start)
    given = plan([*flags, *ours, "ref", "--frozen.ref", str(start)], 2, world / "out")
    assert with_reference(given) == given


def test_every_pass_plays_against_the_answers_of_those_before_it(world, flags, gpm_checkpoint):
    judge = ("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm_checkpoint))
    plain = plan([*flags, *judge], 3, world / "out")
    assert with_history(plain) == plain
    history = (*judge, "--gpm.opponent", "history")
    first, second, third = with_history(plan([*flags, *history], 3, world / "out"))
    one, two = (f"{world}/out/pass{number}/history" for number in (1, 2))
    assert "--gpm.history" not in first.flags
    assert second.flags[-2:] == ("--gpm.history", one)
    assert third.flags[-2:] == ("--gpm.history", f"{one},{two}")
    given = with_history(plan([*flags, *history, "--gpm.history", "/before"], 2, world / "out"))
    assert given[1].flags[-2:] == ("--gpm.history", f"/before,{one}")


@pytest.mark.parametrize("flag", ["--ckpt.output_dir=x", "--ckpt.path", "--ckpt.load_enable"])
def test_flags_that_the_driver_sets_are_refused(flag, tmp_path):
    with pytest.raises(ValueError, match=rf"{flag.partition('=')[0]} is set by self-play"):
        plan([flag], 2, tmp_path)


@pytest.mark.parametrize("damage", ["no config", "no weights", "half the weights", "a shard is missing"])
def test_a_pass_is_done_when_its_model_is_whole(tmp_path, damage):
    (each,) = plan(["--actor.model_name_or_path", "start"], 1, tmp_path)
    assert "does not exist" in unfinished(each)
    save_model(each.folder)
    assert unfinished(each) is None
    weights = each.folder / "model.safetensors"
    if damage == "no config":
        (each.folder / "config.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (each.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        weights.rename(each.folder / "model-00001-of-00002.safetensors")
    assert str(each.folder) in unfinished(each)


def test_finished_passes_are_skipped_and_lose_their_checkpoints(world, flags, capsys):
    passes = plan(flags, 2, world / "out")
    for each in passes:
        finish(each)
    capsys.readouterr()
    assert self_play(world, *flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"pass 1 is done: {world}/out/pass1",
        f"pass 2 is done: {world}/out/pass2",
        f"all 2 passes are done: the policy is {world}/out/pass2",
    ]
    assert not any(each.checkpoints.exists() for each in passes)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--gpo.beta", "2"], "--gpo.beta was 1.0, is 2.0"),
        (["--train.batch_size", "3"], "--train.batch_size 3"),
        (["--data.prompt_dataset", "prompts1.jsonl"], "prompts1.jsonl does not exist"),
        (["--gpm.log_groups", "groups"], "put {pass} into it"),
        (["--actor.policy_loss_type", "ppo", "--algo.advantage.estimator", "reinforce"], "--reward_model_type gpm"),
    ],
)
def test_what_cannot_work_in_any_pass_ends_before_the_first_in_one_line(world, flags, more, said, capsys):
    if "--gpo.beta" in more:
        finish(plan(flags, 2, world / "out")[0])
    assert self_play(world, *flags, *more) == 2
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[-1]
    assert "process" not in captured.out


def test_a_later_pass_that_is_done_without_the_one_before_is_refused(world, flags, capsys):
    save_model(plan(flags, 2, world / "out")[1].folder)
    assert self_play(world, *flags) == 2
    assert "out/pass2 is done, but pass 1 before it is not" in capsys.readouterr().err


def test_the_exit_status_of_a_pass_is_handed_on_with_what_to_do(world, flags, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")  # not an address: ray.init raises at once
    assert self_play(world, *flags) == 1
    out = capsys.readouterr().out
    assert f"pass 1: {world}/policy -> {world}/out/pass1" in out
    assert "pass 1 ended with exit status 1: its output above says why. The same command starts" in out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_pass_ends_with_its_driver(world, flags, number, status):
    """The pass would wait for a Ray cluster that never answers."""
    command = [sys.executable, "-m", "openrlhf_gpm.cli.main", *arguments(world, *flags)]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{silent.getsockname()[1]}"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
            try:
                assert f"pass 1: {world}/policy -> {world}/out/pass1, process" in driver.stdout.readline()
                (child,) = psutil.Process(driver.pid).children()
                assert "openrlhf.cli.train_ppo_ray" in child.cmdline()
                driver.send_signal(number)
                assert psutil.wait_procs([child], timeout=HANGS) == ([child], [])
                assert driver.wait(HANGS) == status
                if number == signal.SIGTERM:
                    assert "pass 1 was stopped. The same command starts this pass again" in driver.stdout.read()
            finally:
                driver.kill()


def test_a_run_without_a_policy_to_start_from_is_refused(tmp_path):
    for flags in (["--train.seed", "1"], ["--actor.model_name", "start"]):  # argparse takes the second for the flag
        with pytest.raises(ValueError, match=r"--actor\.model_name_or_path is missing, or not spelled out"):
            plan(flags, 2, tmp_path)
