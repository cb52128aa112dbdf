"""Flags of `train_ppo_ray`: ours and every objective's, declared here and checked against OpenRLHF's."""

from __future__ import annotations

from argparse import ArgumentParser
from types import SimpleNamespace

from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm import objectives
from openrlhf_gpm.checkpoints.checkpoint import open_pretrained
from openrlhf_gpm.objectives import frozen, opponents
from openrlhf_gpm.trainer.checkpoint_checks import check_parallelism, check_trusted
from openrlhf_gpm.trainer.policy import upstream_flags
from openrlhf_gpm.trainer.policy.paths import MODELS, absolute_paths
from openrlhf_gpm.trainer.policy.units import check_sizes

logger = init_logger(__name__)


def add_flags(parser: ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("preference groups", "Used with a GPM, or with an objective of this package.")
    group.add_argument(
        "--gpm.log_groups",
        default=None,
        metavar="DIR",
        help="write every step's groups to DIR/step_NNNNNN.jsonl: prompt, responses, embeddings, mean scores, win "
        "rates, and what the objective prepared for each response",
    )
    group.add_argument(
        "--gpm.bad_rows",
        choices=["refuse", "skip"],
        default="refuse",
        help="prompts that the policy or the GPM cannot read: end the run at the first, or leave out and count them",
    )
    group.add_argument(
        "--gpm.attn_implementation",
        choices=["auto", "sdpa", "flash"],
        default="auto",
        help="attention of the reward actor's GPM; auto: as --ds.attn_implementation. Both share a prompt between its "
        "responses",
    )
    objectives.add_objective_flags(parser)
    frozen.add_frozen_flags(parser)
    opponents.add_opponent_flags(parser)


def check(args: SimpleNamespace) -> None:
    """Raise ValueError for flags that cannot work together; warn of those that nothing reads."""
    objective = objectives.from_args(args)
    scores_groups = args.reward_model_type == "gpm" or objective.own_loss
    unread = objectives.unread_flags(args, type(objective) if scores_groups else None)
    unread += frozen.unread_flags(args, objectives.frozen_policies(args), objective.iteration_every)
    unread += opponents.unread_flags(args) if scores_groups else opponents.given(args)
    if args.gpm.log_groups and not scores_groups:
        unread.append("--gpm.log_groups")
    if args.gpm.attn_implementation != "auto" and args.reward_model_type != "gpm":
        unread.append("--gpm.attn_implementation")
    if unread:
        logger.warning(f"{', '.join(unread)}: not used, because no part of this run reads them")
    if objective.own_loss:
        upstream_flags.check(args)
        _check_frozen(args)
    if scores_groups:
        absolute_paths(args)
        check_trusted(args, MODELS)
        _check_groups(args)
        opponents.check(args, objective)
        if args.reward_model_type == "gpm":
            _check_gpm_reward(args)
        check_sizes(args, objective.trained(args.rollout.n_samples_per_prompt), objective.together)


def _check_frozen(args: SimpleNamespace) -> None:
    frozen.from_args(args)  # raises ValueError for values that cannot work
    needs = objectives.frozen_policies(args)
    if "ref" in needs and args.ds.tensor_parallel_size > 1:
        raise ValueError(
            f"--ds.tensor_parallel_size {args.ds.tensor_parallel_size} cannot be used with the frozen policy `ref`: "
            "take 1, or another frozen policy"
        )
    if needs and args.ds.zpg > 1:
        raise ValueError(
            f"--ds.zpg {args.ds.zpg} keeps second copies of the weights, which a frozen policy would miss: take 1"
        )


def _check_groups(args: SimpleNamespace) -> None:
    if args.rollout.n_samples_per_prompt < 2:
        raise ValueError(
            "--rollout.n_samples_per_prompt must be at least 2: preferences compare the responses of one prompt"
        )
    if args.reward.remote_url or args.train.agent_func_path:
        raise ValueError(
            "--reward.remote_url and --train.agent_func_path bring rewards of single responses; remove them, "
            "a group is scored by --reward.model_name_or_path"
        )
    if args.data.label_key:
        raise ValueError("--data.label_key is not read: the reward model compares the responses; remove it")
    if not args.reward.model_name_or_path:
        raise ValueError("--reward.model_name_or_path is missing: name the reward model that scores the groups")
    if args.ds.lora.rank > 0:
        raise ValueError(
            f"--ds.lora.rank {args.ds.lora.rank}: OpenRLHF cannot send the weights of a LoRA policy to vLLM; remove "
            "it, and train all weights"
        )
    if not 0 < args.rollout.temperature < float("inf"):
        raise ValueError(
            f"--rollout.temperature must be > 0, got {args.rollout.temperature}: self-play samples from the policy"
        )


def _check_gpm_reward(args: SimpleNamespace) -> None:
    check_parallelism(args)
    if args.gpm.attn_implementation == "flash" and args.ds.param_dtype == "fp32":
        raise ValueError(
            "--gpm.attn_implementation flash has no kernel for --ds.param_dtype fp32: take sdpa, or bf16 weights"
        )
    micro, K = args.rollout.micro_batch_size, args.rollout.n_samples_per_prompt
    if micro % K and not args.train.dynamic_batch_enable:
        logger.warning(
            f"--rollout.micro_batch_size {micro} cuts groups of {K} responses, and a prompt is encoded again for each "
            f"part: {-(-micro // K) * K} would keep them whole"
        )
    path, flag = args.reward.model_name_or_path, "--reward.model_name_or_path"
    checkpoint = open_pretrained(path, flag, args.trust_remote_code)
    if checkpoint.gpm.head == "pairwise":
        raise ValueError(
            f"{flag} {path} is a pairwise encoder (--gpm.head pairwise), which has no embedding of a single response: "
            "give a GPM or a model with head reward"
        )
    if args.reward.normalize_enable:
        raise ValueError(
            "--reward.normalize_enable has no meaning for a GPM: a preference score has no mean; remove it"
        )
    if args.algo.advantage.estimator == "gae" and not args.critic.model_name_or_path:
        # Upstream would start the critic from the reward model, whose head has 2k rows.
        args.critic.model_name_or_path = args.actor.model_name_or_path
        logger.info("--critic.model_name_or_path is not set: the critic starts from the actor's model")
