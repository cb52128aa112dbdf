"""Prompts are read before anything starts: what a run could not use is refused, or left out, with its row."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from openrlhf.cli import train_ppo_ray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from openrlhf_gpm.checkpoints.checkpoint import save_gpm
from openrlhf_gpm.trainer.policy.prompts import GroupPromptDataset, check_prompts, usable_rows

GOOD = {"prompt": "Name a prime."}


@pytest.fixture
def args(gpm_checkpoint, tmp_path):
    """args(rows or None, *flags) -> arguments of a run whose policy and GPM have the checkpoint's tokenizer."""

    def build(rows, *flags):
        file = tmp_path / "prompts.jsonl"
        if rows is not None:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return train_ppo_ray.parse_args(
            [
                *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm_checkpoint)),
                *("--actor.model_name_or_path", str(gpm_checkpoint), "--actor.policy_loss_type", "gpo"),
                *("--algo.kl.init_coef", "0", "--rollout.n_samples_per_prompt", "2", "--rollout.batch_size", "2"),
                *("--train.batch_size", "4", "--train.micro_batch_size", "1", "--actor.num_gpus_per_node", "1"),
                *("--data.prompt_dataset", str(file), "--data.input_key", "prompt", "--data.apply_chat_template"),
                *flags,
            ]
        )

    return build


@pytest.fixture(scope="module")
def max_len_64(new_gpm, chat_tokenizer, tmp_path_factory) -> str:
    """A GPM whose samples have at most 64 tokens."""
    path = tmp_path_factory.mktemp("short") / "gpm"
    save_gpm(new_gpm(max_len=64), chat_tokenizer, path)
    return str(path)


def test_the_planned_steps_are_counted_from_the_usable_prompts(args):
    run = args([GOOD] * 5)
    check_prompts(run)
    assert run.gpm.optimizer_steps == 3  # windows of 4 among 4, 4 and 2 responses


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "  \n"}, "empty"),
        ({"prompt": None}, "a text or a list of messages"),
        ({"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}, "the assistant's"),
        ({"prompt": "<|im_start|>user\nHi<|im_end|>\n"}, "control token"),
        ({"prompt": "long " * 400}, "the reward model cannot read the prompt"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_with_its_row_or_left_out(args, row, why, caplog, max_len_64):
    run = args([GOOD, row, *[GOOD] * 4], "--reward.model_name_or_path", max_len_64)
    with pytest.raises(ValueError, match=r"row 2: .*" + why + r".*--gpm\.bad_rows skip"):
        check_prompts(run)
    run.gpm.bad_rows = "skip"
    with caplog.at_level("WARNING"):
        check_prompts(run)
    assert "1 of 6 rows skipped" in caplog.text
    assert run.gpm.optimizer_steps == 3


def test_the_prompt_travels_beside_the_policys_rendering_of_it(args):
    run = args([], "--gpm.bad_rows", "skip")
    rows = [GOOD, {"prompt": ""}, {"prompt": "Hi"}]
    tokenizer = AutoTokenizer.from_pretrained(run.actor.model_name_or_path)
    data = GroupPromptDataset(Dataset.from_list(rows), tokenizer, SimpleNamespace(args=run, is_rank_0=lambda: False))
    assert data.labels == ["Name a prime.", "Hi"]
    assert [prompt.count("<|im_start|>") for prompt in data.prompts] == [2, 2]


def test_messages_are_prompts_and_other_lists_are_not(args):
    run = args([])
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "Hi"}]}])
    tokenizer = AutoTokenizer.from_pretrained(run.actor.model_name_or_path)
    assert usable_rows(data, tokenizer, run) == [0]
    run.data.apply_chat_template = False
    with pytest.raises(ValueError, match=r"messages need --data\.apply_chat_template"):
        usable_rows(data, tokenizer, run)


@pytest.mark.parametrize(
    ("rows", "flags", "named"),
    [
        ([], [], "--data.prompt_dataset"),
        ([GOOD] * 4, ["--data.input_template", "{} {}"], "--data.input_template"),
        (None, [], "--data.prompt_dataset"),
        ([GOOD] * 4, ["--data.input_key", "question"], "--data.input_key question: the columns"),
        ([GOOD] * 4, ["--actor.model_name_or_path", "no/policy"], "no/policy has no tokenizer"),
        ([GOOD] * 2, [], "--actor.lr_warmup_ratio 0"),
    ],
)
def test_what_the_run_cannot_start_with_is_named(args, rows, flags, named):
    with pytest.raises(ValueError, match=named):
        check_prompts(args(rows, *flags))


def test_a_bradley_terry_reward_with_another_tokenizer_is_refused(args, chat_tokenizer, tmp_path):
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1})), eos_token="b")
    other.save_pretrained(tmp_path / "bt")
    chat_tokenizer.save_pretrained(tmp_path / "same")
    run = args([GOOD] * 5, "--reward_model_type", "bt", "--reward.model_name_or_path", str(tmp_path / "same"))
    check_prompts(run)
    run.reward.model_name_or_path = str(tmp_path / "bt")
    with pytest.raises(ValueError, match=r"another tokenizer .* --gpm\.head reward"):
        check_prompts(run)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_gpm_is_not_taken_for_a_bradley_terry_reward(args, new_gpm, chat_tokenizer, tmp_path, pool):
    """OpenRLHF would load one with head reward, and read the policy's token ids and their last token."""
    save_gpm(new_gpm(head="reward", dim=2, gate="none", normalize=False, pool=pool), chat_tokenizer, tmp_path / "gpm")
    run = args([GOOD] * 5, "--reward_model_type", "bt", "--reward.model_name_or_path", str(tmp_path / "gpm"))
    with pytest.raises(ValueError, match=r"--reward\.model_name_or_path .* is a GPM: .*--reward_model_type gpm"):
        check_prompts(run)


def test_a_run_that_ends_within_a_step_of_two_batches_says_so(args, caplog):
    """Batches of two prompts: six prompts are three, eight are four."""
    egpo = ("--actor.policy_loss_type", "egpo")
    with caplog.at_level("WARNING"):
        check_prompts(args([GOOD] * 8, *egpo))
        check_prompts(args([GOOD] * 6))
    assert "rollout batches" not in caplog.text
    with caplog.at_level("WARNING"):
        check_prompts(args([GOOD] * 6, *egpo))
    assert "egpo takes 2 rollout batches per step, and the run has 3: it ends within a step" in caplog.text
    assert "Give a multiple of 4 prompts" in caplog.text


def test_prompts_that_the_policy_reads_cut_are_counted(args, caplog):
    run = args([GOOD, {"prompt": "long " * 40}, *[GOOD] * 3], "--data.max_len", "60", "--rollout.max_new_tokens", "8")
    with caplog.at_level("WARNING"):
        check_prompts(run)
    assert "1 of 5 prompts are longer than --data.max_len 60 less --rollout.max_new_tokens 8" in caplog.text


def without(name: str, folder: Path) -> None:
    """Take a tensor out of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


DAMAGE = {
    "no head": (lambda folder: without("score.weight", folder), r"no tensor score\.weight"),
    "a layer lacks a tensor": (
        lambda folder: without("model.layers.1.mlp.up_proj.weight", folder),
        "1 tensors are missing",
    ),
    "cut short": (cut_short, "is missing or damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "no tokenizer": (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "holds no tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_gpm_whose_files_are_incomplete_is_refused_before_anything_starts(args, gpm_checkpoint, tmp_path, name):
    damage, said = DAMAGE[name]
    folder = shutil.copytree(gpm_checkpoint, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ValueError, match=said):
        check_prompts(args([GOOD] * 5, "--reward.model_name_or_path", str(folder)))
