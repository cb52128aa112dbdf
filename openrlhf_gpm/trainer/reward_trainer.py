"""Trains a GPM with OpenRLHF's reward-model trainer; the only change is the loss of a batch."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.trainer.rm_trainer import RewardModelTrainer
from torch import Tensor

from openrlhf_gpm.core import cyclic_share, group_scores, preference_loss, preference_score


class GPMRewardTrainer(RewardModelTrainer):
    """RewardModelTrainer, except that a pair's loss is the cross-entropy of its preference score (A.3)."""

    def compute_loss(self, data: dict[str, Tensor]) -> tuple[Tensor, Any, Tensor, Tensor, dict[str, float]]:
        """See RewardModelTrainer.compute_loss; `data` is a batch of GPMRewardDataset.

        Upstream counts `chosen_reward > reject_reward` as right, so it is given the score of the answer that the label
        prefers and zero.
        """
        device = next(self.model.parameters()).device
        data = {name: tensor.to(device) for name, tensor in data.items()}
        embedding, gate, outputs = self.model(
            data["input_ids"],
            attention_mask=data["attention_mask"],
            prompt_lens=data["prompt_lens"],
            return_output=True,
            ring_attn_group=self.strategy.ring_attn_group,
        )
        tau = self.strategy._unwrap_model(self.model).config.gpm["tau"]
        chosen, rejected = embedding.chunk(2)
        gate = gate.chunk(2)[0]  # one prompt, one gate
        score = preference_score(chosen, rejected, gate, tau)  # (B,) log-odds

        loss = preference_loss(
            score,
            data["label"],
            smoothing=self.args.gpm.label_smoothing if self.model.training else 0.0,
            margin=data["margin"] if self.margin_loss else None,
            tau=tau,
        )
        aux_loss = outputs.aux_loss if self.aux_loss else 0
        preferred = torch.where(data["label"] < 0.5, -score, score).detach()
        return loss, aux_loss, preferred, torch.zeros_like(preferred), _metrics(embedding, gate, preferred, tau)

    def evaluate(self, eval_dataloader: Any, steps: int = 0) -> None:
        """Upstream's evaluation. It leaves a reward's mean and std in the config; a score has none."""
        super().evaluate(eval_dataloader, steps)
        config = self.strategy._unwrap_model(self.model).config
        del config.mean, config.std


@torch.no_grad()
def _metrics(embedding: Tensor, gate: Tensor, preferred: Tensor, tau: float) -> dict[str, float]:
    """What shows whether the GPM learns, and whether it needs to be one.

    prob: mean probability of the preferred answer. score_scale: mean |score|, log-odds. gate_entropy: of the gate as a
    distribution over its k planes, nats. cyclic_share: the part of the scores among all the batch's embeddings, in
    [0, 1], that no scalar reward can express; a property of the embedding space, for no two prompts are ever compared.
    """
    weights = gate / gate.sum(-1, keepdim=True)
    return {
        "prob": torch.sigmoid(preferred).mean().item(),
        "score_scale": preferred.abs().mean().item(),
        "gate_entropy": torch.special.entr(weights).sum(-1).mean().item(),
        "cyclic_share": cyclic_share(group_scores(embedding.detach(), gate.mean(0), tau)).item(),
    }
