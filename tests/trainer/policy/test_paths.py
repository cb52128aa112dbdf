"""Local paths become absolute, names of the Hub stay, and no output may write over an input."""

import json
import os

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a policy, a reward model and prompts."""
    for name in ("base", "judge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_on_disk_becomes_absolute_and_names_of_the_hub_stay(parse, here):
    args = parse(
        *("--actor.model_name_or_path", "base", "--reward.model_name_or_path", "org/judge"),
        *("--data.prompt_dataset", "prompts.jsonl, org/prompts@part", "--ckpt.output_dir", "out/policy"),
        *("--ckpt.path", "./out/deepspeed", "--gpm.log_groups", "out/groups", "--logger.tensorboard_dir", "out/tb"),
    )
    assert args.actor.model_name_or_path == f"{here}/base"
    assert args.reward.model_name_or_path == "org/judge"
    assert args.data.prompt_dataset == f"{here}/prompts.jsonl,org/prompts@part"
    assert args.ckpt.output_dir == f"{here}/out/policy"
    assert args.ckpt.path == f"{here}/out/deepspeed"
    assert args.gpm.log_groups == f"{here}/out/groups"
    assert args.logger.tensorboard_dir == f"{here}/out/tb"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ckpt.output_dir", "judge"], "--ckpt.output_dir {here}/judge is --reward.model_name_or_path"),
        (["--ckpt.output_dir", "link"], "is --reward.model_name_or_path"),
        (["--ckpt.output_dir", "base/new"], "is inside --actor.model_name_or_path"),
        (["--ckpt.path", "."], "contains --actor.model_name_or_path"),
        (["--gpm.log_groups", "judge/groups"], "is inside --reward.model_name_or_path"),
        (["--ckpt.output_dir", "prompts.jsonl"], "is --data.prompt_dataset"),
        (["--actor.model_name_or_path", "./nothing"], "--actor.model_name_or_path ./nothing does not exist"),
    ],
)
def test_an_output_over_an_input_and_a_model_that_is_not_there_are_refused(parse, here, flags, said, capsys):
    os.symlink(here / "judge", here / "link")
    with pytest.raises(SystemExit) as ended:
        parse(
            *("--actor.model_name_or_path", "base", "--reward.model_name_or_path", "judge"),
            *("--data.prompt_dataset", "prompts.jsonl", "--ckpt.output_dir", "out", *flags),
        )
    assert ended.value.code == 2
    assert said.format(here=here) in capsys.readouterr().err


def test_outputs_may_lie_in_each_other_and_logs_around_inputs(parse, here):
    args = parse(
        *("--actor.model_name_or_path", "base", "--ckpt.output_dir", "out", "--ckpt.path", "out/deepspeed"),
        *("--logger.tensorboard_dir", "."),
    )
    assert args.logger.tensorboard_dir == str(here)
