"""Checks of the parsed OpenRLHF arguments; each error names the flag and the remedy."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from openrlhf.utils.logging_utils import init_logger
from transformers import AutoConfig

from openrlhf_gpm.checkpoints.checkpoint import read_adapter
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.trunks import sharing_obstacle, sliding_window
from openrlhf_gpm.plugin import REGRESSION_LOSSES

logger = init_logger(__name__)


def check_reward_training(args: SimpleNamespace) -> None:
    """Flags of `train_rm --reward_model_type gpm`. Raises ValueError."""
    _check_common(args)
    config_from_flags(args)
    if not 0.0 <= args.gpm.label_smoothing < 0.5:
        raise ValueError(f"--gpm.label_smoothing must be in [0, 0.5), got {args.gpm.label_smoothing}")
    if not 0.0 <= args.gpm.held_out < 1.0:
        raise ValueError(f"--gpm.held_out must be a share of the prompts in [0, 1), got {args.gpm.held_out}")
    if args.gpm.held_out and args.eval.dataset:
        raise ValueError("--gpm.held_out and --eval.dataset both say what to evaluate on: remove one")
    if args.gpm.loss == "mse" and args.gpm.label_smoothing:
        raise ValueError("--gpm.label_smoothing belongs to --gpm.loss ce; mse regresses on given log-odds")
    if args.gpm.loss == "mse" and args.model.margin_loss_enable:
        raise ValueError("--model.margin_loss_enable belongs to --gpm.loss ce; mse regresses on given log-odds")
    if args.gpm.save_best and not (args.gpm.held_out or args.eval.dataset):
        raise ValueError(
            "--gpm.save_best has nothing to judge by but training rows: give --gpm.held_out or --eval.dataset"
        )
    if not args.model.model_name_or_path:
        raise ValueError("--model.model_name_or_path is missing: name the model to train the GPM from")
    if not args.data.dataset:
        raise ValueError("--data.dataset is missing: name a preference file (JSONL, parquet) or a dataset")
    _check_lm(args)
    if args.model.aux_loss_coef:
        raise ValueError(
            "--model.aux_loss_coef: OpenRLHF's reward training has no balancing loss, because a trunk without its "
            "output layer computes none; leave it 0"
        )
    if args.model.loss_type != "sigmoid":
        raise ValueError(
            f"--model.loss_type {args.model.loss_type} is a Bradley-Terry loss; a GPM trains with sigmoid"
        )
    if os.path.isdir(args.model.model_name_or_path):
        _check_whole(args.model.model_name_or_path, "--model.model_name_or_path")
        try:
            model_config(args)
        except OSError as error:
            raise ValueError(
                f"--model.model_name_or_path {args.model.model_name_or_path} is no model that can be read"
            ) from error


def warn_of_unused(flags: list[str], why: str) -> None:
    """Say that these flags change nothing, and why."""
    if flags:
        logger.warning(f"{', '.join(flags)}: not used, because {why}")


def model_config(args: SimpleNamespace) -> GPMConfig:
    """The GPM that `train_rm` trains: its checkpoint's settings where it continues one, else `config_from_flags`.

    --data.max_len may shorten a checkpoint's samples, not lengthen them. Raises ValueError for another layout.
    """
    path = args.model.model_name_or_path
    stored = getattr(AutoConfig.from_pretrained(path), "gpm", None)
    if not stored:
        return config_from_flags(args)
    gpm = GPMConfig.from_dict(stored)
    _check_layout(gpm, path, "--model.model_name_or_path")
    limits = [limit for limit in (gpm.max_len, args.data.max_len) if limit is not None]
    return replace(gpm, max_len=min(limits, default=None))


def config_from_flags(args: SimpleNamespace) -> GPMConfig:
    """The GPM that `train_rm`'s flags describe; a flag that is not given keeps `GPMConfig`'s default."""
    flags = {"dim": args.gpm.dim, "gate": args.gpm.gate, "tau": args.gpm.tau}
    normalize = not args.gpm.no_normalize
    if args.gpm.head != "embedding":  # Bradley-Terry and the pairwise encoder: one number, tau 1 unless given
        scalar = {"dim": 2, "gate": "none", "tau": 1.0}
        flags = {name: scalar[name] if value is None else value for name, value in flags.items()}
        normalize = False
    return GPMConfig(
        head=args.gpm.head,
        learn_tau=args.gpm.learn_tau,
        normalize=normalize,
        chat_template=args.data.apply_chat_template,
        input_template=args.data.input_template,
        max_len=args.data.max_len,
        **{name: value for name, value in flags.items() if value is not None},
    )


def why_not_share_prompts(args: SimpleNamespace, max_len: int | None) -> str | None:
    """Why a group's prompt cannot be encoded once in training, None where it can. max_len: of a sample, in tokens."""
    if args.gpm.share_prompt == "off":
        return "--gpm.share_prompt off"
    return tree_obstacle(args.model.model_name_or_path, args.ds, max_len)


def tree_obstacle(path: str, ds: SimpleNamespace, max_len: int | None) -> str | None:
    """Why the trunk at `path` cannot read a group as a tree (`samples/forest.py`) under the --ds.* flags, or None."""
    if ds.attn_implementation != "sdpa":
        return f"--ds.attn_implementation {ds.attn_implementation} reads no trees, sdpa does"
    config = AutoConfig.from_pretrained(path)
    window = sliding_window(config)
    if window is not None and (max_len is None or max_len > window):
        return f"the trunk's sliding window is shorter ({window}) than --data.max_len {max_len}"
    return sharing_obstacle(config)


def _check_lm(args: SimpleNamespace) -> None:
    if args.gpm.lm_coef < 0:
        raise ValueError(f"--gpm.lm_coef must be >= 0, got {args.gpm.lm_coef}")
    if args.gpm.lm_coef and args.gpm.head == "pairwise":
        raise ValueError("--gpm.lm_coef is for one response a text, --gpm.head pairwise reads two: leave it at 0")
    if args.gpm.lm_coef:
        config = AutoConfig.from_pretrained(args.model.model_name_or_path)
        if not config.get_text_config().tie_word_embeddings:
            raise ValueError(
                f"--gpm.lm_coef needs a model that ties its output layer to its embeddings, which "
                f"{args.model.model_name_or_path} does not: leave it at 0"
            )


def check_alignment(args: SimpleNamespace) -> None:
    """Flags of `train_ppo_ray` with a GPM or with the GPO or SPPO loss. Raises ValueError."""
    if args.rollout.n_samples_per_prompt < 2:
        raise ValueError(
            "--rollout.n_samples_per_prompt must be at least 2: preferences compare the responses of one prompt"
        )
    if args.reward.remote_url or args.train.agent_func_path:
        raise ValueError(
            "--reward.remote_url and --train.agent_func_path bring rewards of single responses; remove them, "
            "a group is scored by --reward.model_name_or_path"
        )
    if not args.reward.model_name_or_path:
        raise ValueError("--reward.model_name_or_path is missing: name the reward model that scores the groups")
    if args.reward_model_type == "gpm":
        _check_gpm_reward(args)
    if args.actor.policy_loss_type in REGRESSION_LOSSES:
        _check_regression_loss(args)


def _check_common(args: SimpleNamespace) -> None:
    if args.ds.value_head_prefix != "score":
        raise ValueError(f"--ds.value_head_prefix must be score for a GPM, got {args.ds.value_head_prefix}")
    if args.ds.ring_attn_size > 1:
        raise ValueError("--ds.ring_attn_size must be 1 for a GPM: ring attention is not supported")


def _check_layout(gpm: GPMConfig, path: str, flag: str) -> None:
    if gpm.layout == "classifier":
        raise ValueError(
            f"{flag} {path} is in the layout of a plain classifier: use `openrlhf-gpm convert --from classifier --to "
            "gpm` first"
        )


def _check_whole(path: str, flag: str) -> None:
    if os.path.isdir(path) and read_adapter(Path(path)) is not None:
        raise ValueError(
            f"{flag} {path} is a LoRA adapter: merge it into its base model first, `openrlhf-gpm convert --from gpm "
            "--to gpm`"
        )


def _check_gpm_reward(args: SimpleNamespace) -> None:
    _check_common(args)
    try:
        config = AutoConfig.from_pretrained(args.reward.model_name_or_path)
    except OSError as error:
        path = args.reward.model_name_or_path
        raise ValueError(f"--reward.model_name_or_path {path} is no model that can be read: give a GPM") from error
    path, flag = args.reward.model_name_or_path, "--reward.model_name_or_path"
    gpm = GPMConfig.from_pretrained_config(config)
    _check_layout(gpm, path, flag)
    _check_whole(path, flag)
    if gpm.head == "pairwise":
        raise ValueError(
            f"{flag} {path} is a pairwise encoder (--gpm.head pairwise), which has no embedding of a single response: "
            "give a GPM or a model with head reward"
        )
    if args.data.label_key:
        raise ValueError("--data.label_key has no use with --reward_model_type gpm: the GPM judges; remove the flag")
    if args.reward.normalize_enable:
        raise ValueError(
            "--reward.normalize_enable has no meaning for a GPM: a preference score has no mean; remove it"
        )
    uses_critic = args.algo.advantage.estimator == "gae" and args.actor.policy_loss_type not in REGRESSION_LOSSES
    if uses_critic and not args.critic.model_name_or_path:
        # Upstream would start the critic from the reward model, whose head has 2k rows.
        args.critic.model_name_or_path = args.actor.model_name_or_path
        logger.info("--critic.model_name_or_path is not set: the critic starts from the actor's model")


def _check_regression_loss(args: SimpleNamespace) -> None:
    loss = args.actor.policy_loss_type
    if not args.gpo.beta > 0:
        raise ValueError(f"--gpo.beta must be positive, got {args.gpo.beta}")
    if args.gpo.target_clip is not None and not args.gpo.target_clip > 0:
        raise ValueError(f"--gpo.target_clip must be positive, got {args.gpo.target_clip}")
    if loss == "sppo" and args.gpo.baseline != "zero":
        raise ValueError("--gpo.baseline log_z belongs to gpo; sppo's baseline is 1/2: remove the flag")
    if loss == "gpo" and args.gpo.hard:
        raise ValueError("--gpo.hard counts wins, which only sppo regresses on: use --actor.policy_loss_type sppo")
    if args.algo.kl.init_coef > 0 and not args.algo.kl.use_loss:
        raise ValueError(
            f"--algo.kl.init_coef {args.algo.kl.init_coef} acts on the reward, which {loss} does not read; pass "
            "--algo.kl.init_coef 0 for no penalty, or --algo.kl.use_loss to add it to the loss"
        )
    if args.reward.overlong_buffer_len is not None or args.reward.stop_properly_penalty_coef is not None:
        raise ValueError(
            f"--reward.overlong_buffer_len and --reward.stop_properly_penalty_coef shape the reward, which {loss} "
            "does not read; remove them"
        )
    if args.algo.advantage.estimator == "gae":
        args.algo.advantage.estimator = "dr_grpo"  # any estimator without a critic: the loss reads none
        logger.info(f"{loss} needs no critic and no advantage estimator: --algo.advantage.estimator is not used")
    if args.algo.advantage.is_correction_level != "off":
        logger.info(f"{loss} corrects nothing: --algo.advantage.is_correction_level only logs vLLM's log-probs")
