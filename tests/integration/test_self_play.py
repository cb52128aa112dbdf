"""Two passes by one driver, killed between them: the same command goes on, and each pass is trained once."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from openrlhf_gpm import core


@pytest.fixture(scope="module")
def run(stack, gpm, ray_env, tmp_path_factory):
    """(folder, prompts of each pass, weights of pass 1 when the driver was killed, output of the second start)."""
    folder = tmp_path_factory.mktemp("passes")
    prompts = {number: [{"prompt": f"w{number} w{i} w{i + 1} "} for i in range(6)] for number in (1, 2)}
    prompts[2][:2] = prompts[1][:2]  # in both passes: the report compares the answers to them
    for number, rows in prompts.items():
        stack.write_jsonl(folder / f"prompts{number}.jsonl", rows)
    flags = stack.ppo_command(
        folder / "unused",
        *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm), "--actor.policy_loss_type", "gpo"),
        *("--data.prompt_dataset", f"{folder}/prompts{{pass}}.jsonl"),
        *("--rollout.batch_size", "4", "--train.batch_size", "16", "--gpo.beta", "0.5", "--ckpt.save_steps", "1"),
        *("--gpm.opponent", "history"),
    )[3:]
    for flag in ("--ckpt.output_dir", "--ckpt.path"):
        place = flags.index(flag)
        del flags[place : place + 2]
    driver = [sys.executable, "-m", "openrlhf_gpm.cli.main", "self-play", "--passes", "2"]
    command = [*driver, "--output", str(folder / "out"), "--report", "--", *flags]

    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=ray_env, **options) as first:
        lines = []
        for line in first.stdout:
            lines.append(line)
            if line.startswith("pass 2:"):
                first.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail(f"the driver ended with {first.wait()} before pass 2: {''.join(lines[-40:])}")
    weights = load_file(folder / "out/pass1/model.safetensors")
    second = stack.run(command, folder / "second.log", ray_env)
    return folder, prompts, weights, second


def test_the_finished_pass_is_kept_and_the_second_starts_from_it(run):
    folder, _, weights, second = run
    assert f"pass 1 is done: {folder}/out/pass1" in second
    assert f"pass 2: {folder}/out/pass1 -> {folder}/out/pass2" in second
    kept = load_file(folder / "out/pass1/model.safetensors")
    assert all((weights[name] == kept[name]).all() for name in kept)


def test_every_prompt_of_every_pass_is_trained_once(run, stack):
    folder, prompts, _, _ = run
    for number, rows in prompts.items():
        files = (folder / f"out/pass{number}/groups").glob("step_*")
        trained = [row["prompt"] for file in files for row in stack.read_jsonl(file)]
        assert sorted(trained) == sorted(row["prompt"] for row in rows)


def logged(stack, folder, number):
    """Prompt -> its line in the group log of a pass."""
    files = (folder / f"out/pass{number}/groups").glob("step_*")
    return {row["prompt"]: row for file in files for row in stack.read_jsonl(file)}


def test_the_second_pass_plays_against_what_the_first_answered(run, stack):
    """Half of a prompt's opponent is its own group, half are the answers of pass 1; by hand, from both logs."""
    folder, prompts, _, _ = run
    first, second = logged(stack, folder, 1), logged(stack, folder, 2)
    shared = {row["prompt"] for row in prompts[1]} & {row["prompt"] for row in prompts[2]}
    assert len(shared) == 2
    for prompt in shared:
        line = second[prompt]
        v, gate = torch.tensor(line["embeddings"]), torch.tensor(line["gate_over_tau"])
        other = torch.tensor(first[prompt]["embeddings"])
        within = core.mean_scores(core.group_scores(v, gate))
        against = core.preference_score(v[:, None], other[None], gate[0]).mean(-1)
        torch.testing.assert_close(torch.tensor(line["opponent_scores"]), (within + against) / 2, atol=1e-4, rtol=1e-4)


def test_the_report_compares_the_passes_on_the_prompts_that_both_had(run):
    folder, _, _, second = run
    found = json.loads((folder / "out/report/report.json").read_text())
    assert (found["policies"], found["prompts"]) == (["pass 1", "pass 2"], 2)
    assert found["win_rates"][0][1] + found["win_rates"][1][0] == pytest.approx(1)
    assert f"report: {folder}/out/report/report.md" in second


def test_each_pass_moves_the_policy_and_leaves_no_checkpoints(run, stack):
    folder, _, _, _ = run
    start, first, second = (
        load_file(f"{path}/model.safetensors")
        for path in (stack.world["policy"], folder / "out/pass1", folder / "out/pass2")
    )
    for before, after in ((start, first), (first, second)):
        assert any((before[name] != after[name]).any() for name in after)
    assert not list((folder / "out").glob("*/deepspeed"))
