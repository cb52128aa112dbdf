"""The one file OpenRLHF calls: flags, checks and components of the GPM, of GPO and of SPPO.

OpenRLHF (patched, see patches/) finds `GPMPlugin` through the entry-point group `openrlhf.plugins`. Nothing here acts
unless a run asks for it by `--reward_model_type gpm` or by `--actor.policy_loss_type gpo|sppo`.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from openrlhf.plugins import Plugin

REGRESSION_LOSSES = ("gpo", "sppo")


class GPMPlugin(Plugin):
    """General Preference Models as reward models, GPO and SPPO as policy losses."""

    def choices(self, flag: str) -> list[str]:
        """The values that a flag of OpenRLHF's has beside its own."""
        return list(REGRESSION_LOSSES) if flag == "actor.policy_loss_type" else []

    def add_arguments(self, command: str, parser: ArgumentParser) -> None:
        """Add our flags to the parser of a command."""
        if command == "serve_rm":
            return  # a GPM scores groups, which OpenRLHF's one-number reward protocol cannot carry
        parser.add_argument(
            "--reward_model_type",
            choices=["bt", "gpm"],
            default="bt",
            help="bt: a Bradley-Terry reward, one number a response, as OpenRLHF has it; gpm: a General Preference "
            "Model, an embedding a response, able to express cyclic preferences (arXiv 2410.02197)",
        )
        if command == "train_rm":
            _add_reward_model_arguments(parser)
        else:
            _add_policy_arguments(parser)

    def check_arguments(self, command: str, args: SimpleNamespace) -> None:
        """Raise ValueError for flags that cannot work together; warn of those that nothing reads."""
        from openrlhf_gpm.trainer import arguments

        if command == "train_rm" and args.reward_model_type == "gpm":
            arguments.check_reward_training(args)
        elif command == "train_rm":
            arguments.warn_of_unused(_given(args, _add_reward_model_arguments), "--reward_model_type gpm is not given")
        elif command == "train_ppo_ray":
            if _scores_groups(args):
                arguments.check_alignment(args)
            arguments.warn_of_unused(_unused_policy_flags(args), "no part of this run reads them")

    def check_cluster(self, args: SimpleNamespace) -> None:
        """Raise ValueError where the Ray cluster cannot hold the run."""
        if _scores_groups(args):
            from openrlhf_gpm.trainer.policy.cluster import check_cluster

            check_cluster(args)

    def component(self, name: str, args: SimpleNamespace) -> Any:
        """The class or function that takes the place of OpenRLHF's, or None to leave that."""
        load = _components(args).get(name)
        return load() if load else None


def _given(args: SimpleNamespace, add_arguments: Callable[[ArgumentParser], None]) -> list[str]:
    """Those of the flags, --GROUP.NAME, that are not at their default."""
    parser = ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    return [f"--{name}" for name, value in defaults.items() if attrgetter(name)(args) != value]


def _unused_policy_flags(args: SimpleNamespace) -> list[str]:
    """The given flags of train_ppo_ray that this run's reward model and loss do not read."""
    regression = _policy_loss(args) in REGRESSION_LOSSES
    gpm = args.reward_model_type == "gpm"
    read = {"--gpm.log_groups": gpm or regression, "--gpm.reward": gpm and not regression}
    return [flag for flag in _given(args, _add_policy_arguments) if not read.get(flag, regression)]


def _components(args: SimpleNamespace) -> dict[str, Callable[[], Any]]:
    """Loaders of what this run asks for; each imports only when it is called."""
    components: dict[str, Callable[[], Any]] = {}
    if getattr(args, "reward_model_type", "bt") == "gpm":
        components |= {
            "reward_model_builder": partial(_load, "reward.model", "model_builder", args),
            "reward_dataset": partial(_load, "reward.dataset", "GPMRewardDataset"),
            "reward_trainer": partial(_load, "reward.trainer", "GPMRewardTrainer"),
            "prompt_dataset": partial(_load, "policy.prompt_dataset", "GPMPromptDataset"),
            "reward_actor": partial(_load, "policy.reward_actor", "GPMRewardActor"),
        }
    if _scores_groups(args):
        components |= {
            "experience_maker": partial(_load, "policy.experience_maker", "GroupExperienceMaker"),
            "ppo_trainer": partial(_load, "policy.controller", "GroupPPOTrainer"),
            "async_training_actor": partial(_load, "policy.controller", "GroupTrainingActor"),
        }
    if _policy_loss(args) in REGRESSION_LOSSES:
        components["actor_trainer"] = partial(_load, "policy.actor", "RegressionActorTrainer")
    return components


def _load(module: str, name: str, *bound: Any) -> Any:
    """`name` from openrlhf_gpm.trainer.`module`, called with `bound` when there is something to bind."""
    from importlib import import_module

    found = getattr(import_module(f"openrlhf_gpm.trainer.{module}"), name)
    return found(*bound) if bound else found


def _policy_loss(args: SimpleNamespace) -> str | None:
    return getattr(getattr(args, "actor", None), "policy_loss_type", None)


def _scores_groups(args: SimpleNamespace) -> bool:
    """Whether this is an alignment run whose rewards come from comparing the responses of a prompt."""
    policy_loss = _policy_loss(args)
    return policy_loss is not None and (args.reward_model_type == "gpm" or policy_loss in REGRESSION_LOSSES)


def _add_reward_model_arguments(parser: ArgumentParser) -> None:
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


def _add_policy_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("general preference model", "Used with --reward_model_type gpm.")
    group.add_argument(
        "--gpm.reward",
        choices=["score", "win_rate"],
        default="score",
        help="what upstream's losses (ppo, gspo) and estimators take as the reward of a response: its mean score "
        "(log-odds) or its mean probability of winning against the rest of its group",
    )
    group.add_argument(
        "--gpm.log_groups",
        default=None,
        metavar="DIR",
        help="write every step's groups to DIR/step_NNNNNN.jsonl: prompt, responses, embeddings, mean scores, win "
        "rates, targets",
    )
    group = parser.add_argument_group(
        "GPO and SPPO",
        "Used with --actor.policy_loss_type gpo|sppo: regress the log-ratio of a whole response, in nats, on "
        "(value - baseline) / beta; value is the mean score (gpo) or the win rate - 1/2 (sppo) against the group.",
    )
    group.add_argument(
        "--gpo.beta",
        type=float,
        default=1.0,
        help="regularisation: 1 / beta is the step size (default 1; the paper's scripts have 0.001, see docs)",
    )
    group.add_argument(
        "--gpo.baseline",
        choices=["zero", "log_z"],
        default="zero",
        help="gpo only: what stands for log Z in eq. 5.7; log_z is the group's log-mean-exp of the values",
    )
    group.add_argument("--gpo.include_self", action="store_true", help="average over all K, the paper's 1/K")
    group.add_argument("--gpo.hard", action="store_true", help="sppo only: count wins (0, 1/2, 1) instead of probs")
    group.add_argument("--gpo.target_clip", type=float, default=None, help="bound of |target| in nats (default none)")
    group.add_argument(
        "--gpo.responses",
        choices=["all", "best_worst"],
        default="all",
        help="train on all K responses or on the best and the worst of each group",
    )
