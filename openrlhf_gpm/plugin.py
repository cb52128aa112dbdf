"""The one file OpenRLHF calls: which of its components this package replaces, and when.

OpenRLHF (patched, see patches/) finds `GPMPlugin` through the entry-point group `openrlhf.plugins`. Nothing here acts
unless a run asks for it by `--reward_model_type gpm` or by naming an objective of ours as --actor.policy_loss_type.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from openrlhf.plugins import Plugin


class GPMPlugin(Plugin):
    """General Preference Models as reward models, preference objectives as policy losses."""

    def choices(self, flag: str) -> list[str]:
        """Additional values that one of OpenRLHF's flags accepts."""
        if flag != "actor.policy_loss_type":
            return []
        from openrlhf_gpm import objectives

        return list(objectives.classes())

    def add_arguments(self, command: str, parser: ArgumentParser) -> None:
        """Add our flags to the parser of a command."""
        if command == "serve_rm":
            return  # a GPM scores groups, which OpenRLHF's one-number reward protocol cannot carry
        parser.add_argument(
            "--reward_model_type",
            choices=["bt", "gpm"],
            default="bt",
            help="bt: OpenRLHF's Bradley-Terry reward, one number per response; gpm: a General Preference Model, one "
            "embedding per response, which can express cyclic preferences (arXiv 2410.02197)",
        )
        parser.add_argument(
            "--trust_remote_code",
            action="store_true",
            help="with a GPM or an objective of this package: run code that a model brings (auto_map); "
            "without it such a model is refused",
        )
        if command == "train_rm":
            from openrlhf_gpm.trainer.reward.flags import add_flags
        else:
            from openrlhf_gpm.trainer.policy.flags import add_flags
        add_flags(parser)

    def check_arguments(self, command: str, args: SimpleNamespace) -> None:
        """Raise ValueError for flags that cannot work together; warn of those that nothing reads."""
        if command == "train_rm":
            from openrlhf_gpm.trainer.reward.flags import check

            check(args)
        elif command == "train_ppo_ray":
            from openrlhf_gpm.trainer.policy.flags import check

            check(args)

    def check_cluster(self, args: SimpleNamespace) -> None:
        """Raise ValueError where the output is another run's, the cluster cannot hold this one, or prompts are bad."""
        if _scores_groups(args):
            from openrlhf_gpm.trainer.policy.cluster import check_cluster
            from openrlhf_gpm.trainer.policy.placement_watch import PlacementWatch
            from openrlhf_gpm.trainer.policy.prompts import check_prompts
            from openrlhf_gpm.trainer.policy.run_state import own_folders

            own_folders(args)
            check_cluster(args)
            check_prompts(args)
            PlacementWatch().start()

    def started(self, args: SimpleNamespace, trainer: Any, groups: dict[str, Any], engines: list[Any] | None) -> None:
        """Watch the run's actors until it ends."""
        if _scores_groups(args):
            from openrlhf_gpm.trainer.policy.supervisor import actors_of, current_step, supervise

            actors = actors_of(trainer, groups, engines)
            supervise(actors, partial(current_step, actors["the trainer"]), args.ckpt.path)

    def component(self, name: str, args: SimpleNamespace) -> Any:
        """The class or function that takes the place of OpenRLHF's, or None to leave that."""
        load = _components(args).get(name)
        return load() if load else None


def _components(args: SimpleNamespace) -> dict[str, Callable[[], Any]]:
    """Loaders of what this run asks for; each imports only when it is called."""
    components: dict[str, Callable[[], Any]] = {}
    if getattr(args, "reward_model_type", "bt") == "gpm":
        components |= {
            "reward_model_builder": partial(_load, "reward.model", "model_builder", args),
            "reward_dataset": partial(_load, "reward.dataset", "GPMRewardDataset"),
            "reward_trainer": partial(_load, "reward.trainer", "GPMRewardTrainer"),
            "reward_actor": partial(_load, "policy.reward_actor", "GPMRewardActor"),
        }
    if _scores_groups(args):
        components |= {
            "prompt_dataset": partial(_load, "policy.prompts", "GroupPromptDataset"),
            "experience_maker": partial(_load, "policy.experience_maker", "GroupExperienceMaker"),
            "ppo_trainer": partial(_load, "policy.controller", "GroupPPOTrainer"),
            "ppo_trainer_async": partial(_load, "policy.controller", "GroupPPOTrainerAsync"),
            "async_training_actor": partial(_load, "policy.controller", "GroupTrainingActor"),
        }
    if _has_own_loss(args):
        components["actor_trainer"] = partial(_load, "policy.actor", "ObjectiveActorTrainer")
        components["policy_actor"] = partial(_load, "policy.policy_actor", "ObjectivePolicyActor")
    return components


def _load(module: str, name: str, *bound: Any) -> Any:
    """`name` from openrlhf_gpm.trainer.`module`, called with `bound` when there is something to bind."""
    from importlib import import_module

    found = getattr(import_module(f"openrlhf_gpm.trainer.{module}"), name)
    return found(*bound) if bound else found


def _has_own_loss(args: SimpleNamespace) -> bool:
    """Whether this run aligns a policy by an objective of ours."""
    loss = getattr(getattr(args, "actor", None), "policy_loss_type", None)
    if loss is None:
        return False
    from openrlhf_gpm import objectives

    return objectives.load(loss).own_loss


def _scores_groups(args: SimpleNamespace) -> bool:
    """Whether this is an alignment run whose rewards come from comparing the responses of a prompt."""
    aligns = hasattr(args, "actor")
    return aligns and (args.reward_model_type == "gpm" or _has_own_loss(args))
