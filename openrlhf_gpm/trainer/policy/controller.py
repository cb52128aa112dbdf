"""OpenRLHF's controllers, synchronous and asynchronous, with the statistics of groups."""

from __future__ import annotations

from typing import Any

import ray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer, SyncPPOTrainer
from openrlhf.trainer.ppo_trainer_async import AsyncPPOTrainer, BaseTrainingActor
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm import objectives

logger = init_logger(__name__)

ASKING = "asking"
"""The concurrency group of questions that are answered while an actor is busy."""

LOADER_ENDED = "_iterator_finished"
"""In the state of torchdata's StatefulDataLoader: whether it has given all its rows."""

CYCLIC = 0.2
"""Share of the scores that no reward can express above which the last policy circles without a frozen policy."""


class _GroupStatistics(BasePPOTrainer):
    """What both controllers add: the group log's step, statistics of the groups, and the end of an episode."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cyclic_shares: list[float] = []  # of the judge, per step

    @ray.method(concurrency_group=ASKING)
    def current_step(self) -> int:
        """The step that is being trained, from 1; 0 before the first."""
        return int(self.experience_maker.step)

    def train_step(self, rollout_samples: Any, global_step: int) -> tuple[dict[str, Any], int]:
        self.experience_maker.step = global_step + 1
        return super().train_step(rollout_samples, global_step)

    def init_checkpoint_states(self) -> dict[str, Any]:
        """Upstream's, except that what was saved after the last prompt of an episode goes on with the next one.

        A prompt loader that has ended starts anew when it is loaded, so the episode would be trained twice.
        """
        states = super().init_checkpoint_states()
        if states["data_loader_state_dict"].get(LOADER_ENDED):
            states["episode"] += 1
        return states

    def _compute_rollout_stats(self, experiences: list[Experience]) -> dict[str, float]:
        """Upstream's over the whole rollout batch, of which `experiences` may be a part, and those of its groups."""
        self.cyclic_shares.append(self.experience_maker.statistics["cyclic_share"])
        return super()._compute_rollout_stats(self.experience_maker.rollout) | self.experience_maker.statistics


class BaseGroupPPOTrainer(_GroupStatistics, SyncPPOTrainer):
    """Upstream's synchronous trainer with the statistics of groups in its log."""

    def own_actors(self) -> dict[str, Any]:
        """The actors that this one has made, by name: none."""
        return {}

    def get_max_steps(self) -> int:
        """Optimizer steps, as `check_prompts` counted them."""
        return int(self.args.gpm.optimizer_steps)

    def fit(self, global_step: int = 0) -> None:
        """Upstream's; warns at the end where the last policy circles."""
        super().fit(global_step)
        if warning := circling(
            objectives.from_args(self.args), objectives.frozen_policies(self.args), self.cyclic_shares
        ):
            logger.warning(warning)


def circling(objective: objectives.Objective, frozen: tuple[str, ...], cyclic_shares: list[float]) -> str | None:
    """What to say at the end of a run whose last policy cannot be trusted: its judge is cyclic, and nothing is frozen.

    frozen: the frozen policies of the run; cyclic_shares: of the judge's scores, per step.
    """
    if not objective.own_loss or frozen or not cyclic_shares:
        return None
    share = sum(cyclic_shares) / len(cyclic_shares)
    if share < CYCLIC:
        return None
    return (
        f"{share:.0%} of the judge's scores are cyclic, and no frozen policy was used: the last policy circles around "
        "the equilibrium and may be worse than an earlier one. A magnet makes it converge: docs/objectives.md, "
        "What converges"
    )


class BaseGroupTrainingActor(_GroupStatistics, BaseTrainingActor):
    """Upstream's asynchronous training actor with the statistics of groups in its log."""


class BaseGroupPPOTrainerAsync(AsyncPPOTrainer):
    """Upstream's asynchronous trainer with the number of optimizer steps that this run really takes."""

    def __init__(self, pretrain: str, strategy: Any, *groups: Any, **options: Any) -> None:
        super().__init__(pretrain, strategy, *groups, **options)
        self.args = strategy.args

    def own_actors(self) -> dict[str, Any]:
        """The actors that this one has made, by name."""
        return {"the generator of rollouts": self.generator_actor, "the trainer": self.trainer_actor}

    def get_max_steps(self) -> int:
        """Optimizer steps, as `check_prompts` counted them."""
        return int(self.args.gpm.optimizer_steps)


GroupPPOTrainerAsync = ray.remote(BaseGroupPPOTrainerAsync)
GroupPPOTrainer = ray.remote(concurrency_groups={ASKING: 1})(BaseGroupPPOTrainer)
GroupTrainingActor = ray.remote(concurrency_groups={ASKING: 1})(BaseGroupTrainingActor)
