"""GPO (eq. 5.7) and SPPO as an OpenRLHF policy loss: a regression of whole responses' log-ratios."""

from __future__ import annotations

import torch
from openrlhf.models import aggregate_loss
from openrlhf.models.utils import masked_mean
from torch import Tensor, nn

from openrlhf_gpm.core import policy_regression_loss


class RegressionPolicyLoss(nn.Module):
    """(sum_t log pi_theta - sum_t log pi_t - target)^2, a mean over responses.

    It stands where OpenRLHF's `PolicyLoss` does: same arguments, same return. `advantages` carries each response's
    target in nats on its action tokens, as GroupExperienceMaker put it there. The mean is upstream's aggregation over
    sequences, so it is the same for any micro-batch size and number of ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_ratios: list[Tensor] = []  # detached, one (B,) a micro-batch, until they are popped

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor,
        rollout_log_probs: Tensor | None = None,
        dp_size: int = 1,
        batch_num_tokens: Tensor | float | None = None,
        global_batch_size: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """(B, A) each -> (loss (), clip ratio 0, ppo_kl (), vllm_kl () or None, filter ratio 0 or None)."""
        mask = action_mask.float()
        tokens = mask.sum(-1).clamp(min=1)
        log_ratio = ((log_probs - old_log_probs) * mask).sum(-1)
        target = (advantages * mask).sum(-1) / tokens
        squared_error = policy_regression_loss(log_ratio, target)  # (B,)
        loss = aggregate_loss(
            squared_error.unsqueeze(-1).expand_as(mask),
            mask,
            token_level_loss=False,
            dp_size=dp_size,
            batch_num_tokens=batch_num_tokens,
            global_batch_size=global_batch_size,
        )
        trained = mask.any(-1)
        self.log_ratios.append(log_ratio.detach()[trained])

        zero = torch.zeros((), device=loss.device)
        ppo_kl = masked_mean((old_log_probs - log_probs).detach(), mask) if trained.any() else zero
        if rollout_log_probs is None:
            return loss, zero, ppo_kl, None, None
        vllm_kl = masked_mean((rollout_log_probs - old_log_probs).detach(), mask) if trained.any() else zero
        return loss, zero, ppo_kl, vllm_kl, zero

    def pop_log_ratios(self) -> Tensor:
        """The log-ratios of every response since the last call, nats, (N,) on the CPU."""
        ratios, self.log_ratios = self.log_ratios, []
        return torch.cat(ratios).float().cpu() if ratios else torch.empty(0)
