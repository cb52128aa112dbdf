"""Flags of `train_rm --reward_model_type gpm`: declared and checked here, once."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from dataclasses import replace
from operator import attrgetter
from types import SimpleNamespace

from openrlhf.utils.logging_utils import init_logger
from transformers import AutoConfig

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.trainer.checkpoint_checks import (
    check_layout,
    check_parallelism,
    check_whole,
    training_forest_obstacle,
)

logger = init_logger(__name__)


def add_flags(parser: ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group(
        "general preference model",
        "Used with --reward_model_type gpm. They are stored in the checkpoint, so no later command repeats them; "
        "training that continues a GPM keeps what its checkpoint says.",
    )
    group.add_argument(
        "--gpm.head",
        choices=["embedding", "reward", "pairwise"],
        default="embedding",
        help="embedding: a GPM; reward: Bradley-Terry, trained by the same code; pairwise: an encoder of prompt and "
        "two responses in both orders, the O(K^2) peer",
    )
    group.add_argument("--gpm.dim", type=int, default=None, help="embedding size 2k, even (default 8)")
    group.add_argument(
        "--gpm.gate",
        default=None,
        choices=["none", "softmax", "softmax_scaled", "softplus"],
        help="scale gate lambda(x), read from the prompt's last token (default softmax_scaled)",
    )
    group.add_argument(
        "--gpm.tau", type=float, default=None, help="temperature: log-odds are the raw score / tau (default 0.1)"
    )
    group.add_argument("--gpm.learn_tau", action="store_true", help="tau is trained, starting from --gpm.tau")
    group.add_argument(
        "--gpm.no_normalize", action="store_true", help="leave embeddings at their length instead of unit length"
    )
    group = parser.add_argument_group(
        "training a general preference model", "Used with --reward_model_type gpm; the checkpoint does not keep them."
    )
    group.add_argument(
        "--gpm.loss",
        choices=["ce", "mse"],
        default="ce",
        help="ce: cross-entropy with the rows' labels; mse: squared error to the rows' log_odds",
    )
    group.add_argument(
        "--gpm.label_smoothing", type=float, default=0.0, help="probability in [0, 0.5) that a label is wrong"
    )
    group.add_argument(
        "--gpm.lm_coef",
        type=float,
        default=0.0,
        help="weight of a language-model loss on the preferred responses, a regulariser (tied embeddings only)",
    )
    group.add_argument(
        "--gpm.share_prompt",
        choices=["auto", "off"],
        default="auto",
        help="encode a prompt once for all its responses, exactly (needs --ds.attn_implementation sdpa; on a GPU no "
        "packing)",
    )
    group.add_argument(
        "--gpm.merge_prompts",
        action="store_true",
        help="rows with the same prompt become one group: each response is encoded once, every comparison is used; "
        "batch sizes then count prompts",
    )
    group.add_argument(
        "--gpm.held_out",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="keep this share of the prompts for evaluation (without --eval.dataset)",
    )
    group.add_argument(
        "--gpm.bad_rows",
        choices=["refuse", "skip"],
        default="refuse",
        help="rows that are no preference: end the run at the first, or leave them out and say how many",
    )
    group.add_argument(
        "--gpm.save_best",
        choices=["loss", "acc"],
        default=None,
        help="keep the checkpoint of the best evaluation in CKPT.OUTPUT_DIR/best",
    )


def check(args: SimpleNamespace) -> None:
    """Raise ValueError for flags that cannot work together; without a GPM, warn of those that nothing reads."""
    if args.reward_model_type != "gpm":
        unread = _given(args)
        if unread:
            logger.warning(f"{', '.join(unread)}: not used, because --reward_model_type gpm is not given")
        return
    check_parallelism(args)
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
        check_whole(args.model.model_name_or_path, "--model.model_name_or_path")
        try:
            model_config(args)
        except OSError as error:
            raise ValueError(
                f"--model.model_name_or_path {args.model.model_name_or_path} is no model that can be read"
            ) from error


def _given(args: SimpleNamespace) -> list[str]:
    """Those of our flags that are not at their default."""
    parser = ArgumentParser()
    add_flags(parser)
    return [f"--{name}" for name, value in vars(parser.parse_args([])).items() if attrgetter(name)(args) != value]


def model_config(args: SimpleNamespace) -> GPMConfig:
    """The GPM that `train_rm` trains: its checkpoint's settings where it continues one, else `config_from_flags`.

    --data.max_len may shorten a checkpoint's samples, not lengthen them. Raises ValueError for another layout.
    """
    path = args.model.model_name_or_path
    stored = getattr(AutoConfig.from_pretrained(path), "gpm", None)
    if not stored:
        return config_from_flags(args)
    gpm = GPMConfig.from_dict(stored)
    check_layout(gpm, path, "--model.model_name_or_path")
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


def share_prompt_obstacle(args: SimpleNamespace, max_len: int | None) -> str | None:
    """Why a group's prompt cannot be encoded once in training, None where it can. max_len: of a sample, in tokens."""
    if args.gpm.share_prompt == "off":
        return "--gpm.share_prompt off"
    return training_forest_obstacle(args.model.model_name_or_path, args.ds, max_len)


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
