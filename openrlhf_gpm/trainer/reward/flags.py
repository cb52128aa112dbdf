"""Flags of `train_rm --reward_model_type gpm`: declared and checked here, once."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from dataclasses import dataclass, replace
from types import SimpleNamespace

from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm import flags
from openrlhf_gpm.checkpoints.checkpoint import Checkpoint, open_pretrained
from openrlhf_gpm.config import CHOICES, GPMConfig
from openrlhf_gpm.flags import flag, flag_fields, given_flags, read_flags
from openrlhf_gpm.scoring.options import SHARE_PROMPT
from openrlhf_gpm.trainer.checkpoint_checks import check_parallelism, check_trusted
from openrlhf_gpm.trainer.reward.run_state import check_folders

logger = init_logger(__name__)

START = "--model.model_name_or_path"


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """What the model is: fields of `GPMConfig`, whose checks and defaults hold. None: the default of the head."""

    head: str = flag(
        GPMConfig.head,
        "embedding: a GPM; reward: Bradley-Terry, trained by the same code; pairwise: an encoder of the prompt and "
        "two responses in both orders, which costs K (K - 1) passes per group",
        choices=CHOICES["head"],
    )
    dim: int | None = flag(None, "embedding size 2k, even", type=int, shown=f"{GPMConfig.dim}; 2 for other heads")
    gate: str | None = flag(
        None,
        "scale gate lambda(x), read from the prompt's last token",
        choices=CHOICES["gate"],
        shown=f"{GPMConfig.gate}; none for other heads",
    )
    pool: str = flag(
        GPMConfig.pool,
        "what the head reads: the state of the sample's last token, or the mean of those of the response's tokens",
        choices=CHOICES["pool"],
    )
    tau: float | None = flag(
        None,
        "temperature: log-odds are the raw score / tau",
        type=float,
        shown=f"{GPMConfig.tau}; 1 for other heads",
    )
    learn_tau: bool = flag(False, "train tau, starting from --gpm.tau")
    no_normalize: bool = flag(False, "leave embeddings at their length instead of unit length")
    reasoning: str | None = flag(
        None,
        "what the model reads of the reasoning in a response, <think> ... </think>: keep all of it, or strip it",
        choices=CHOICES["reasoning"],
        shown="what the chat template writes",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """How it is trained; the checkpoint does not keep these."""

    loss: str = flag(
        "ce",
        "ce: cross-entropy with the rows' labels; mse: squared error to the rows' log_odds",
        choices=["ce", "mse"],
    )
    label_smoothing: float = flag(0.0, "probability in [0, 0.5) that a label is wrong")
    lm_coef: float = flag(
        0.0,
        "weight of a language-model loss on the preferred responses, a regulariser; needs tied embeddings",
    )
    share_prompt: str = flag(
        SHARE_PROMPT[0],
        "auto: encode a prompt once for all its responses, exactly (needs --ds.attn_implementation sdpa or "
        "flash_attention_2)",
        choices=SHARE_PROMPT,
    )
    merge_prompts: bool = flag(
        False,
        "make one group of all rows with the same prompt: each response is encoded once, every comparison is used; "
        "batch sizes then count prompts",
    )
    held_out: float = flag(
        0.0, "keep this share of the prompts for evaluation, without --eval.dataset", metavar="SHARE"
    )
    bad_rows: str = flag(
        "refuse",
        "rows that cannot be used: end the run at the first, or skip them and report how many",
        choices=["refuse", "skip"],
    )
    save_best: str | None = flag(
        None, "keep the checkpoint of the best evaluation in CKPT.OUTPUT_DIR/best", choices=["loss", "acc"]
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"--gpm.label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.loss == "mse" and self.label_smoothing:
            raise ValueError("--gpm.label_smoothing belongs to --gpm.loss ce; mse regresses on given log-odds")
        if self.lm_coef < 0:
            raise ValueError(f"--gpm.lm_coef must be >= 0, got {self.lm_coef}")
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"--gpm.held_out must be a share of the prompts in [0, 1), got {self.held_out}")


def add_flags(parser: ArgumentParser) -> None:
    """Declare them."""
    model = parser.add_argument_group(
        "general preference model",
        "Used with --reward_model_type gpm. They are stored in the checkpoint, so no later command repeats them; "
        "training that continues a GPM keeps what its checkpoint says.",
    )
    flags.add_flags(model, "gpm", flag_fields(ModelFlags))
    training = parser.add_argument_group(
        "training a general preference model", "Used with --reward_model_type gpm; the checkpoint does not keep them."
    )
    flags.add_flags(training, "gpm", flag_fields(TrainingFlags))


def check(args: SimpleNamespace) -> None:
    """Raise ValueError for flags that cannot work together; without a GPM, warn of those that nothing reads."""
    if args.reward_model_type != "gpm":
        unread = [name for cls in (ModelFlags, TrainingFlags) for name in given_flags(args, "gpm", flag_fields(cls))]
        if unread:
            logger.warning(f"{', '.join(unread)}: not used, because --reward_model_type gpm is not given")
        return
    config = config_from_flags(args)
    training = TrainingFlags(**read_flags(args, "gpm", flag_fields(TrainingFlags)))
    check_parallelism(args)
    _take_sdpa_on_a_cpu(args)
    _check_data(args, training)
    _check_loss(args, training)
    if not args.model.model_name_or_path:
        raise ValueError(f"{START} is missing: name the model to train the GPM from")
    check_trusted(args, [START.removeprefix("--")])
    check_folders(args)
    _check_start(args, config, training)


def _take_sdpa_on_a_cpu(args: SimpleNamespace) -> None:
    """So that a recipe runs on a CPU as it is; the patched `train_ppo_ray` does the same."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" and args.ds.attn_implementation == "flash_attention_2":
        logger.warning("[CPU] --ds.attn_implementation flash_attention_2 needs a GPU: sdpa takes its place.")
        args.ds.attn_implementation = "sdpa"


def _check_data(args: SimpleNamespace, training: TrainingFlags) -> None:
    if not args.data.dataset:
        raise ValueError("--data.dataset is missing: name a preference file (JSONL, parquet) or a dataset")
    if training.held_out and args.eval.dataset:
        raise ValueError("--gpm.held_out and --eval.dataset both name what to evaluate on: remove one")
    if training.save_best and not (training.held_out or args.eval.dataset):
        raise ValueError(
            "--gpm.save_best has nothing to judge by but training rows: give --gpm.held_out or --eval.dataset"
        )


def _check_loss(args: SimpleNamespace, training: TrainingFlags) -> None:
    if training.loss == "mse" and args.model.margin_loss_enable:
        raise ValueError("--model.margin_loss_enable belongs to --gpm.loss ce; mse regresses on given log-odds")
    if args.model.aux_loss_coef:
        raise ValueError(
            "--model.aux_loss_coef: OpenRLHF's reward training has no balancing loss, because a trunk without its "
            "output layer computes none; leave it 0"
        )
    if args.model.loss_type != "sigmoid":
        raise ValueError(
            f"--model.loss_type {args.model.loss_type} is a Bradley-Terry loss; a GPM trains with sigmoid"
        )


def _check_start(args: SimpleNamespace, config: GPMConfig, training: TrainingFlags) -> None:
    """What the model to start from must be; a name on the Hub is opened only where a flag asks something of it."""
    path = args.model.model_name_or_path
    if training.lm_coef and config.head == "pairwise":
        raise ValueError("--gpm.lm_coef needs one response per text, --gpm.head pairwise reads two: leave it at 0")
    if not os.path.isdir(path) and not training.lm_coef:
        return
    start = open_pretrained(path, START, args.trust_remote_code)
    _check_texts(start, model_config(start, args), args)
    if training.lm_coef and not start.hf.get_text_config().tie_word_embeddings:
        raise ValueError(
            f"--gpm.lm_coef needs a model that ties its output layer to its embeddings, which {path} does not: leave "
            "it at 0"
        )


def _check_texts(start: Checkpoint, config: GPMConfig, args: SimpleNamespace) -> None:
    """Raise ValueError for a tokenizer, a chat template or lengths that the model cannot be trained with."""
    path, text = args.model.model_name_or_path, start.hf.get_text_config()
    if text.pad_token_id is not None and text.pad_token_id >= text.vocab_size:
        raise ValueError(
            f"{START} {path}: pad_token_id {text.pad_token_id} in config.json is outside the embedding, which has "
            f"{text.vocab_size} rows: set it to null, or to the id of a token that the model has"
        )
    if start.positions is not None and (config.max_len or 0) > start.positions:
        raise ValueError(
            f"--data.max_len {config.max_len} is longer than the model's {start.positions} positions "
            f"(max_position_embeddings in {path}): lower it"
        )
    if not list(start.path.glob("tokenizer*")):
        return  # OpenRLHF says so
    tokenizer = start.tokenizer()
    if args.data.apply_chat_template and args.data.tokenizer_chat_template:
        tokenizer.chat_template = args.data.tokenizer_chat_template
    start.formatter(tokenizer, config)


def model_config(start: Checkpoint, args: SimpleNamespace) -> GPMConfig:
    """The GPM that `train_rm` trains: its checkpoint's settings where it continues one, else `config_from_flags`.

    --data.max_len may shorten a checkpoint's samples, not lengthen them.
    """
    if not start.is_gpm:
        return config_from_flags(args)
    limits = [limit for limit in (start.gpm.max_len, args.data.max_len) if limit is not None]
    return replace(start.gpm, max_len=min(limits, default=None))


def config_from_flags(args: SimpleNamespace) -> GPMConfig:
    """The GPM that `train_rm`'s flags describe; a flag that is not given keeps `GPMConfig`'s default."""
    given = {"dim": args.gpm.dim, "gate": args.gpm.gate, "tau": args.gpm.tau}
    normalize = not args.gpm.no_normalize
    if args.gpm.head != "embedding":  # Bradley-Terry and the pairwise encoder: one number, tau 1 unless given
        scalar = {"dim": 2, "gate": "none", "tau": 1.0}
        given = {name: scalar[name] if value is None else value for name, value in given.items()}
        normalize = False
    return GPMConfig(
        head=args.gpm.head,
        pool=args.gpm.pool,
        learn_tau=args.gpm.learn_tau,
        normalize=normalize,
        chat_template=args.data.apply_chat_template,
        input_template=args.data.input_template,
        max_len=args.data.max_len,
        reasoning=args.gpm.reasoning,
        **{name: value for name, value in given.items() if value is not None},
    )


def share_prompt_obstacle(start: Checkpoint, args: SimpleNamespace, max_len: int | None) -> str | None:
    """Why a group's prompt cannot be encoded once in training, None where it can. max_len: of a sample, in tokens."""
    if args.gpm.share_prompt == "off":
        return "--gpm.share_prompt off"
    return start.forest_obstacle(args.ds.attn_implementation, max_len)
