"""The DeepSpeed side of an objective: OpenRLHF's actor trainer with another loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from openrlhf.models import aggregate_loss
from openrlhf.models.utils import masked_mean
from openrlhf.trainer.ppo_utils.experience import Experience, make_experience_batch
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
from torch import Tensor, nn

from openrlhf_gpm import objectives
from openrlhf_gpm.core import quantiles
from openrlhf_gpm.objectives import Objective
from openrlhf_gpm.trainer.policy.noise import NoiseFloor
from openrlhf_gpm.trainer.policy.unit_buffer import UnitBuffer

MEASURED = 1 / 20
"""Of the responses that a step trains, how many are read once more to measure `moved`: some 2 % of the update."""

AT_LEAST = 8
"""Per rank."""

GIVEN = "given/"
"""What an objective prepared for a response travels in the `info` of its experience under this prefix."""


class ObjectiveLoss(nn.Module):
    """An objective's loss in place of OpenRLHF's `PolicyLoss`: same arguments and `given`, same return.

    The mean over responses is upstream's aggregation over sequences, so it is the same for any micro-batch size and
    any number of ranks. Where responses meet in one loss (`Objective.together`), they are neighbours, and each counts
    the loss of its unit, so that mean is the one over units. `advantages` is not read.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.noise: NoiseFloor | None = None  # set while the policy has not moved in the step

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

        given: what the objective prepared, (B,) each. info: gets `policy_loss`, (B,), so that the log has their mean.
        """
        mask = action_mask.float()
        how_far = moved(log_probs, old_log_probs, action_mask)
        if self.noise is not None:
            self.noise.add(how_far, (given or {}).get("target"), mask.any(-1))
        per_response = self._per_response(how_far, given or {})
        if info is not None:
            info["policy_loss"] = per_response.detach()
        loss = aggregate_loss(
            per_response.unsqueeze(-1).expand_as(mask),
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

    def _per_response(self, moved: Tensor, given: dict[str, Tensor]) -> Tensor:
        """(B,) each -> (B,)."""
        together = self.objective.together
        if together == 1:
            return self.objective.loss(moved, given)
        units = {name: values.unflatten(0, (-1, together)) for name, values in given.items()}
        return self.objective.loss(moved.unflatten(0, (-1, together)), units).repeat_interleave(together)


class ObjectiveActorTrainer(ActorPPOTrainer):
    """ActorPPOTrainer, except for `actor_loss_fn`, what it is given, and what the log says of an update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        objective = objectives.from_args(self.args)
        self.actor_loss_fn = ObjectiveLoss(objective)
        if objective.together > 1:
            self.replay_buffer: Any = UnitBuffer(self.replay_buffer, objective.together)
        self.noise = NoiseFloor("Train with --ds.param_dtype fp32, or lower the objective's beta for larger targets")
        self.steps_before = 0  # the engine's optimizer steps when the step began

    def loss_inputs(self, experience: Experience) -> dict[str, Any]:
        """What the objective prepared for these responses, and where the loss leaves its value for each."""
        first = self.actor.model.global_steps == self.steps_before and not self.args.train.async_enable
        self.actor_loss_fn.noise = self.noise if first else None
        given = {
            name.removeprefix(GIVEN): torch.stack(list(values))
            for name, values in experience.info.items()
            if name.startswith(GIVEN)
        }
        return {"given": given, "info": experience.info}

    def ppo_train(self, kl_ctl: float) -> dict[str, float]:
        """Upstream's update; adds what it did to the policy. Raises FloatingPointError where it is not finite.

        `moved_q*`: quantiles of `moved` after the last update, over a twentieth of the responses that were trained.
        `optimizer_steps`: taken by DeepSpeed's engine. `noise`: see `NoiseFloor`.
        """
        self.steps_before = self.actor.model.global_steps
        self.noise.start()
        status = super().ppo_train(kl_ctl)
        status["optimizer_steps"] = float(self.actor.model.global_steps - self.steps_before)
        for name in ("policy_loss", "actor_grad_norm"):
            if not math.isfinite(status[name]):
                raise FloatingPointError(
                    f"{name} is {status[name]} in this step: nothing is sent to vLLM or saved. Lower --actor.adam.lr, "
                    "raise the objective's beta, or train with --ds.param_dtype fp32"
                )
        return status | self.noise.status() | quantiles("moved", self._moved())

    @torch.no_grad()
    def _moved(self) -> Tensor:
        """`moved` of a part of the buffer (`MEASURED`), spread evenly over it and over the ranks."""
        items = self.replay_buffer.items
        share = min(len(items), max(AT_LEAST, round(len(items) * self.args.train.max_epochs * MEASURED)))
        chosen = [items[i * len(items) // share] for i in range(share)]
        found = []
        self.actor.eval()
        for start in range(0, share, self.micro_train_batch_size):
            batch = make_experience_batch(chosen[start : start + self.micro_train_batch_size])
            batch.to_device(torch.device(get_accelerator().current_device_name()))
            log_probs = self.actor(
                batch.sequences,
                batch.action_mask,
                attention_mask=batch.attention_mask,
                ring_attn_group=self.strategy.ring_attn_group,
            )
            after = moved(log_probs, batch.action_log_probs, batch.action_mask)
            found.append(after[batch.action_mask.any(-1)].float().cpu())
        self.actor.train()
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, torch.cat(found))
        return torch.cat(gathered)


def moved(log_probs: Tensor, old_log_probs: Tensor, action_mask: Tensor) -> Tensor:
    """log pi_theta - log pi_t of whole responses: (B, A) each -> (B,) nats."""
    return ((log_probs - old_log_probs) * action_mask.float()).sum(-1)
