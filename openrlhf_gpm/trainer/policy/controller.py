"""OpenRLHF's controllers, synchronous and asynchronous, with the statistics of groups."""

from __future__ import annotations

from typing import Any

import ray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer, SyncPPOTrainer
from openrlhf.trainer.ppo_trainer_async import BaseTrainingActor
from openrlhf.trainer.ppo_utils.experience import Experience


class _GroupStatistics(BasePPOTrainer):
    """What both controllers add: the number of the step for the group log, and statistics of the groups."""

    def train_step(self, rollout_samples: Any, global_step: int) -> tuple[dict[str, Any], int]:
        self.experience_maker.step = global_step + 1
        return super().train_step(rollout_samples, global_step)

    def _compute_rollout_stats(self, experiences: list[Experience]) -> dict[str, float]:
        """Upstream's over the whole rollout batch, its groups', and how far vLLM's log-probs are from the actor's.

        `experiences` are those to train on, which may be fewer.
        """
        whole = self.experience_maker.rollout
        stats = super()._compute_rollout_stats(whole) | self.experience_maker.statistics
        gaps = [_log_prob_gap(experience) for experience in whole if experience.rollout_log_probs is not None]
        if gaps:
            stats["rollout/log_prob_gap_max"] = max(gaps)
        return stats


def _log_prob_gap(experience: Experience) -> float:
    """Largest |log-prob of vLLM - of the actor| over the sampled tokens, nats: near 0 where weights are in sync.

    A response's first token is left out: vLLM is asked for at least one token and never samples EOS there, so its
    distribution over the others is another one than the actor's.
    """
    mask = experience.action_mask.bool()
    later = mask & (mask.cumsum(-1) > 1)
    gap = (experience.rollout_log_probs - experience.action_log_probs).abs()
    return gap[later].max().item() if later.any() else 0.0


class BaseGroupPPOTrainer(_GroupStatistics, SyncPPOTrainer):
    """Upstream's synchronous trainer with the statistics of groups in its log."""


class BaseGroupTrainingActor(_GroupStatistics, BaseTrainingActor):
    """Upstream's asynchronous training actor with the statistics of groups in its log."""


GroupPPOTrainer = ray.remote(BaseGroupPPOTrainer)
GroupTrainingActor = ray.remote(BaseGroupTrainingActor)
