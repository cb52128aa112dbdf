"""The DeepSpeed side of an objective: OpenRLHF's actor trainer with another loss."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.models import aggregate_loss
from openrlhf.models.utils import masked_mean
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
from torch import Tensor, nn

from openrlhf_gpm import objectives
from openrlhf_gpm.core import quantiles
from openrlhf_gpm.objectives import Objective

GIVEN = "given/"
"""What an objective prepared for a response travels in the `info` of its experience under this prefix."""


class ObjectiveLoss(nn.Module):
    """An objective's loss where OpenRLHF's `PolicyLoss` stands: same arguments and `given`, same return.

    The mean over responses is upstream's aggregation over sequences, so it is the same for any micro-batch size and
    any number of ranks. `advantages` is not read.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor | None,
        action_mask: Tensor,
        rollout_log_probs: Tensor | None = None,
        dp_size: int = 1,
        batch_num_tokens: Tensor | float | None = None,
        global_batch_size: Tensor | float | None = None,
        given: dict[str, Tensor] | None = None,
        info: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """(B, A) each -> (loss (), clip ratio 0, ppo_kl (), vllm_kl () or None, filter ratio 0 or None).

        given: what the objective prepared, (B,) each. info: gets `moved`, (B,) nats.
        """
        mask = action_mask.float()
        moved = ((log_probs - old_log_probs) * mask).sum(-1)  # (B,)
        if info is not None:
            info["moved"] = moved.detach()
        loss = aggregate_loss(
            self.objective.loss(moved, given or {}).unsqueeze(-1).expand_as(mask),
            mask,
            token_level_loss=False,
            dp_size=dp_size,
            batch_num_tokens=batch_num_tokens,
            global_batch_size=global_batch_size,
        )
        trained, zero = mask.any(), torch.zeros((), device=loss.device)
        ppo_kl = masked_mean((old_log_probs - log_probs).detach(), mask) if trained else zero
        if rollout_log_probs is None:
            return loss, zero, ppo_kl, None, None
        vllm_kl = masked_mean((rollout_log_probs - old_log_probs).detach(), mask) if trained else zero
        return loss, zero, ppo_kl, vllm_kl, zero


class ObjectiveActorTrainer(ActorPPOTrainer):
    """ActorPPOTrainer, except for `actor_loss_fn`, what it is given, and the quantiles of `moved` in the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor_loss_fn = ObjectiveLoss(objectives.from_args(self.args))

    def loss_inputs(self, experience: Experience) -> dict[str, Any]:
        """What the objective prepared for these responses, and where the loss leaves `moved`."""
        given = {
            name.removeprefix(GIVEN): torch.stack(list(values))
            for name, values in experience.info.items()
            if name.startswith(GIVEN)
        }
        return {"given": given, "info": experience.info}

    def ppo_train(self, kl_ctl: float) -> dict[str, float]:
        """Upstream's update; adds the quantiles of `moved` over the step's responses on all ranks."""
        self.moved: list[Tensor] = []
        status = super().ppo_train(kl_ctl)
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, torch.cat(self.moved) if self.moved else torch.empty(0))
        return status | quantiles("moved", torch.cat(gathered))

    def training_step(self, experience: Experience, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Upstream's; remembers how far each response moved."""
        status = super().training_step(experience, *args, **kwargs)
        self.moved.append(experience.info["moved"][experience.action_mask.any(-1)].float().cpu())
        return status
