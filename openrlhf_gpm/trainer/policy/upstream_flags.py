"""OpenRLHF's flags under an objective with its own loss: one table of those that are refused or not read."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.logging_utils import init_logger

logger = init_logger(__name__)

UNREAD = {
    "algo.advantage.estimator": "no advantages are computed",
    "algo.advantage.gamma": "no advantages are computed",
    "algo.advantage.lambd": "no advantages are computed",
    "algo.advantage.no_std_norm": "no advantages are computed",
    "actor.eps_clip": "no ratio is clipped",
    "actor.eps_clip_low_high": "no ratio is clipped",
    "actor.dual_clip": "no ratio is clipped",
    "actor.loss_agg_mode": "the loss is a mean over responses",
    "reward.clip_range": "scores are not clipped",
    "algo.kl.target": "the reward has no KL penalty",
    "critic.model_name_or_path": "there is no critic",
}
"""Flag -> why a value other than the default changes nothing."""


def _given(value: Any) -> bool:
    return value is not None


REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "critic.freezing_steps": (
        lambda n: n > 0,
        "it delays the policy for a critic, and there is none",
    ),
    "algo.kl.init_coef": (lambda coef: coef < 0, "it must not be negative"),
    "reward.overlong_buffer_len": (_given, "it shapes the reward, which the loss does not read"),
    "reward.stop_properly_penalty_coef": (
        lambda c: c is not None,
        "it shapes the reward, which the loss does not read",
    ),
    "train.partial_rollout_enable": (
        bool,
        "a response is then of several policies; the loss needs the one",
    ),
    "eval.dataset": (
        bool,
        "it needs --reward.remote_url, which gives no preferences",
    ),
}
"""Flag -> (which values cannot work, why)."""


def check(args: SimpleNamespace) -> None:
    """Raise ValueError for flags that an objective's loss cannot work with; warn of those that it does not read."""
    loss = args.actor.policy_loss_type
    for name, (cannot_work, why) in REFUSED.items():
        value = attrgetter(name)(args)
        if cannot_work(value):
            raise ValueError(f"--{name} {value} cannot be used with {loss}: {why}; remove it")
    if args.algo.kl.init_coef > 0 and not args.algo.kl.use_loss:
        raise ValueError(
            f"--algo.kl.init_coef {args.algo.kl.init_coef} acts on the reward, which {loss} does not read; pass "
            "--algo.kl.init_coef 0 for no penalty, or --algo.kl.use_loss to add it to the loss"
        )
    if (args.rollout.vllm_generate_batch_size or 0) > args.rollout.batch_size:
        raise ValueError(
            f"--rollout.vllm_generate_batch_size {args.rollout.vllm_generate_batch_size} keeps responses for later "
            f"policies, and {loss} trains the policy that sampled them: leave it at --rollout.batch_size "
            f"{args.rollout.batch_size}"
        )
    for name, why in UNREAD.items():
        if attrgetter(name)(args) != _default(name):
            logger.warning(f"--{name}: not used with {loss}, because {why}")
    if args.rollout.top_p != 1.0:
        logger.warning(
            f"--rollout.top_p {args.rollout.top_p}: responses are sampled from the truncated policy, while {loss} "
            "measures the whole one"
        )
    args.critic.model_name_or_path = None
    args.algo.advantage.estimator = "dr_grpo"  # one without a critic, so that OpenRLHF starts none
    if args.train.async_enable:
        args.algo.advantage.is_correction_level = "token"  # so that vLLM returns the sampler's log-probs


def _default(name: str) -> Any:
    from openrlhf.cli.train_ppo_ray import build_parser  # that module finds this one through the plugin

    return build_parser().get_default(name)
