"""The DeepSpeed side of GPO and SPPO: upstream's actor trainer with another loss."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

from openrlhf_gpm.trainer.policy.policy_loss import RegressionPolicyLoss
from openrlhf_gpm.trainer.policy.quantiles import quantiles


class RegressionActorTrainer(ActorPPOTrainer):
    """ActorPPOTrainer, except for `actor_loss_fn` and the log-ratios it reports."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor_loss_fn = RegressionPolicyLoss()

    def ppo_train(self, kl_ctl: float) -> dict[str, float]:
        """Upstream's update; adds the quantiles of log pi_theta / pi_t over the step's responses on all ranks."""
        status = super().ppo_train(kl_ctl)
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self.actor_loss_fn.pop_log_ratios())
        return status | quantiles("log_ratio", torch.cat(gathered))
