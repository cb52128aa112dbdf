"""Prompts of self-play: all read before anything starts, and kept unchanged, because the GPM renders them itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from openrlhf.datasets import PromptDataset
from openrlhf.datasets.prompts_dataset import preprocess_data
from openrlhf.datasets.utils import blending_datasets
from openrlhf.utils.logging_utils import init_logger
from openrlhf.utils.utils import get_tokenizer

from openrlhf_gpm import objectives
from openrlhf_gpm.checkpoints.checkpoint import check_complete, open_pretrained
from openrlhf_gpm.config import check_input_template
from openrlhf_gpm.data import BadRows
from openrlhf_gpm.samples.formatting import Formatter
from openrlhf_gpm.trainer.policy.opponent import check_answers
from openrlhf_gpm.trainer.policy.units import optimizer_steps

logger = init_logger(__name__)


class GroupPromptDataset(PromptDataset):
    """PromptDataset, except that a prompt's label is the prompt before the policy's template was applied.

    OpenRLHF carries labels untouched from here through generation to the experience, so that the reward model and the
    group log get the prompt (text or messages) and not the policy's rendering of it. Rows that are not usable are left
    out under --gpm.bad_rows skip; otherwise the first raises ValueError.
    """

    def __init__(self, dataset: Any, tokenizer: Any, strategy: Any, input_template: str | None = None) -> None:
        usable = dataset.select(usable_rows(dataset, tokenizer, strategy.args))
        super().__init__(usable, tokenizer, strategy, input_template)
        self.labels = list(usable[strategy.args.data.input_key])


def check_prompts(args: SimpleNamespace) -> None:
    """Read and render every prompt as the policy and the GPM will; `args.gpm.optimizer_steps` gets the run's length.

    Raises ValueError, which names the flag or the row, for a file or a prompt that the run cannot use, for a GPM whose
    files are incomplete, and for a run whose only optimizer step has learning rate 0.
    """
    if args.reward_model_type == "bt":
        _check_bradley_terry(args)
    elif os.path.isdir(args.reward.model_name_or_path):
        check_complete(open_pretrained(*_reward(args)))
    check_input_template(args.data.input_template)
    objective = objectives.from_args(args)
    n = objective.trained(args.rollout.n_samples_per_prompt)
    prompts = _usable_prompts(args)
    args.gpm.optimizer_steps = optimizer_steps(len(prompts), n, args)
    check_answers(args, prompts)
    _warn_of_an_odd_end(args, objective, len(prompts))
    if args.gpm.optimizer_steps == 1 and args.actor.lr_warmup_ratio > 0 and args.actor.lr_scheduler != "constant":
        raise ValueError(
            "the run has one optimizer step, and its learning rate is 0 because of warm-up: pass "
            "--actor.lr_warmup_ratio 0, or give more prompts"
        )


def _warn_of_an_odd_end(args: SimpleNamespace, objective: objectives.Objective, prompts: int) -> None:
    batches, every = -(-prompts // args.rollout.batch_size) * args.train.num_episodes, objective.iteration_every
    if every and batches % every:
        logger.warning(
            f"{args.actor.policy_loss_type} takes {every} rollout batches per step, and the run has {batches}: it "
            f"ends within a step. Give a multiple of {every * args.rollout.batch_size} prompts"
        )


def _reward(args: SimpleNamespace) -> tuple[str, str, bool]:
    return args.reward.model_name_or_path, "--reward.model_name_or_path", args.trust_remote_code


def _check_bradley_terry(args: SimpleNamespace) -> None:
    """A Bradley-Terry reward of OpenRLHF's gets the policy's token ids unchanged; a GPM of head reward is not one."""
    paths = (args.actor.model_name_or_path, args.reward.model_name_or_path)
    if os.path.isfile(os.path.join(paths[1], "config.json")) and open_pretrained(*_reward(args)).is_gpm:
        raise ValueError(f"--reward.model_name_or_path {paths[1]} is a GPM: pass --reward_model_type gpm")
    policy, reward = (_tokenizer(path, args).get_vocab() for path in paths)
    if policy != reward:
        raise ValueError(
            f"--reward.model_name_or_path {paths[1]} has another tokenizer than the policy {paths[0]}, and "
            "--reward_model_type bt hands it the policy's token ids: train the reward with `train_rm "
            "--reward_model_type gpm --gpm.head reward`, which reads texts, and pass --reward_model_type gpm here"
        )


def _tokenizer(path: str, args: SimpleNamespace) -> Any:
    reader = SimpleNamespace(args=args, print=logger.info)
    try:
        return get_tokenizer(path, None, "left", reader, use_fast=not args.data.disable_fast_tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} has no tokenizer that can be read: {_first_line(error)}") from error


def _usable_prompts(args: SimpleNamespace) -> list[Any]:
    data = args.data
    reader = SimpleNamespace(args=args, print=logger.info, is_rank_0=lambda: False)
    if not data.prompt_dataset:
        raise ValueError("--data.prompt_dataset is missing: name a file of prompts (JSONL, parquet) or a dataset")
    tokenizer = _tokenizer(args.actor.model_name_or_path, args)
    try:
        rows = blending_datasets(
            data.prompt_dataset,
            data.prompt_probs,
            reader,
            args.train.seed,
            data.max_samples,
            dataset_split=data.prompt_split,
        )
    except Exception as error:  # datasets raises many kinds for files that are missing, empty or not what they say
        raise ValueError(
            f"--data.prompt_dataset {data.prompt_dataset} cannot be read: {_first_line(error)}"
        ) from error
    rows = rows.select(range(min(data.max_samples, len(rows))))
    return list(rows.select(usable_rows(rows, tokenizer, args))[data.input_key])


def usable_rows(dataset: Any, tokenizer: Any, args: SimpleNamespace) -> list[int]:
    """Indices of the rows with a prompt that both models can read. Raises ValueError as `check_prompts` does."""
    key = args.data.input_key
    if not len(dataset):
        raise ValueError(f"--data.prompt_dataset {args.data.prompt_dataset} is empty")
    if key not in dataset.column_names:
        raise ValueError(f"--data.input_key {key}: the columns of the prompts are {', '.join(dataset.column_names)}")
    gpm = open_pretrained(*_reward(args)) if args.reward_model_type == "gpm" else None
    formatter = None if gpm is None else gpm.formatter().cut_at_positions()
    bad, usable, long = BadRows(), [], 0
    for index, row in enumerate(dataset):
        bad.rows += 1
        try:
            long += _check_prompt(row, tokenizer, formatter, args)
            usable.append(index)
        except ValueError as error:
            name = f"--data.prompt_dataset {args.data.prompt_dataset}, row {index + 1}"
            if args.gpm.bad_rows == "refuse":
                raise ValueError(f"{name}: {error}; --gpm.bad_rows skip leaves such rows out") from error
            bad.add(name, error)
    if bad.count:
        logger.warning("prompts: %s", bad.summary())
    if long:
        logger.warning(
            f"{long} of {len(usable)} prompts are longer than --data.max_len {args.data.max_len} less "
            f"--rollout.max_new_tokens {args.rollout.max_new_tokens}: the policy reads only their ends, the reward "
            "model all of them"
        )
    if not usable:
        raise ValueError(f"--data.prompt_dataset {args.data.prompt_dataset} has no usable prompt")
    return usable


def _check_prompt(row: Any, tokenizer: Any, formatter: Formatter | None, args: SimpleNamespace) -> bool:
    """Whether the policy will read the prompt cut. Raises ValueError where a model cannot read it."""
    data = args.data
    prompt = row[data.input_key]
    texts = list(_texts(prompt))
    if not any(text.strip() for text in texts):
        raise ValueError("the prompt is empty")
    if not isinstance(prompt, str) and not data.apply_chat_template:
        raise ValueError("messages need --data.apply_chat_template, so that the policy can read them")
    for control in tokenizer.all_special_tokens if data.apply_chat_template else ():  # the GPM reads its own as text
        if any(control in text for text in texts):
            raise ValueError(f"the prompt holds the control token {control}: give the text before templating")
    try:
        rendered, _ = preprocess_data(
            row,
            data.input_template,
            data.input_key,
            apply_chat_template=tokenizer.apply_chat_template if data.apply_chat_template else None,
        )
    except Exception as error:  # jinja's errors, and what templates raise themselves
        raise ValueError(f"the policy's chat template rejects the prompt: {_first_line(error)}") from error
    if formatter is not None:
        try:
            formatter.encode(prompt, "a")  # room for a response, too
        except ValueError as error:
            raise ValueError(f"the reward model cannot read the prompt: {error}") from error
    room = args.data.max_len - (args.rollout.max_new_tokens or 1)
    return len(tokenizer(text=rendered, add_special_tokens=False)["input_ids"]) > room


def _texts(prompt: Any) -> Iterator[str]:
    """The texts of a prompt or of its messages. Raises ValueError for anything else."""
    if isinstance(prompt, str):
        yield prompt
        return
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) and "role" in turn for turn in prompt):
        raise ValueError(f"the prompt must be a text or a list of messages, got {prompt!r:.80}")
    for turn in prompt:
        if not isinstance(turn.get("content"), str):
            raise ValueError(f"the content of a message must be a text, got {turn.get('content')!r:.80}")
        yield turn["content"]
    if prompt[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's: end the prompt with the turn that is to be answered")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
