"""Trains a GPM with OpenRLHF's reward-model trainer, except for the loss of a batch and what a run saves."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.plugins import exit_with_usage_error
from openrlhf.trainer.rm_trainer import RewardModelTrainer
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor

from openrlhf_gpm.core import cyclic_share, group_scores, preference_loss, preference_score, score_regression_loss
from openrlhf_gpm.trainer.reward.best_checkpoint import BestCheckpoint, write_card
from openrlhf_gpm.trainer.reward.model import store_tau

logger = init_logger(__name__)


class GPMRewardTrainer(RewardModelTrainer):
    """RewardModelTrainer, except that a comparison's loss is the cross-entropy of its preference score (A.3)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.best = BestCheckpoint(self.strategy, self.tokenizer, self.args) if self.args.gpm.save_best else None
        self.metrics: dict[str, float] = {}  # of the last evaluation, for the model card
        self.score_scale = 1.0  # of the last batch

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """Upstream's loop; afterwards the learned tau is in the config and the model card is in the checkpoint."""
        if num_update_steps_per_epoch == 0:
            text = (
                f"{len(self.train_dataloader.dataset)} prompts are fewer than --train.batch_size "
                f"{args.train.batch_size}, which counts prompts: lower it"
            )
            exit_with_usage_error("train_rm", ValueError(text))
        super().fit(args, consumed_samples, num_update_steps_per_epoch)
        store_tau(self.strategy._unwrap_model(self.model))
        if self.strategy.is_rank_0():
            if self.score_scale == 0:
                logger.warning("every score of the last batch is 0: the embeddings have collapsed; lower --adam.lr")
            write_card(args, self.strategy._unwrap_model(self.model).config, self.metrics)

    def save_logs_and_checkpoints(self, args: Any, global_step: int, *rest: Any) -> None:
        """Upstream's, except that a checkpoint of --ckpt.save_hf has the tau of its step in its config."""
        if self.save_hf_ckpt:
            store_tau(self.strategy._unwrap_model(self.model))
        super().save_logs_and_checkpoints(args, global_step, *rest)

    def compute_loss(self, data: dict[str, Any]) -> tuple[Tensor, Any, Tensor, Tensor, dict[str, float]]:
        """See RewardModelTrainer.compute_loss; `data` is a batch of GPMRewardDataset.

        Upstream counts `chosen_reward > reject_reward` as right, so it is given the score of the answer that the label
        prefers (`preferred_score`) and zero. Raises FloatingPointError, with the names of the rows, for a loss or
        embedding not finite.
        """
        device = next(self.model.parameters()).device
        embedding, gate, outputs = self.model(
            **{name: tensor.to(device) for name, tensor in data["inputs"].items()},
            return_output=True,
            ring_attn_group=self.strategy.ring_attn_group,
        )
        first, second, of_prompt, label, margin, log_odds = (
            data[name].to(device) for name in ("first", "second", "gate", "label", "margin", "log_odds")
        )
        config = self.strategy._unwrap_model(self.model).config.gpm
        tau = outputs.tau if config["learn_tau"] else config["tau"]
        score = preference_score(embedding[first], embedding[second], gate[of_prompt], tau)  # (C,) log-odds

        if self.args.gpm.loss == "mse":
            loss = score_regression_loss(score, log_odds)
        else:
            loss = preference_loss(
                score,
                label,
                smoothing=self.args.gpm.label_smoothing if self.model.training else 0.0,
                margin=margin if self.margin_loss else None,
                tau=tau,
            )
        preferred = preferred_score(score.detach(), label)
        logs = _metrics(embedding, gate, score.detach(), preferred, float(tau))
        self.score_scale = logs["score_scale"]
        if self.args.gpm.lm_coef and self.model.training:
            loss = loss + self.args.gpm.lm_coef * outputs.lm_loss
            logs["lm_loss"] = outputs.lm_loss.item()
        _check_finite(loss, embedding, data["names"])
        return loss, 0, preferred, torch.zeros_like(preferred), logs

    def evaluate(self, eval_dataloader: Any, steps: int = 0) -> dict[str, float]:
        """Upstream's evaluation, less a reward's mean and std in the config, which a score does not have."""
        model = self.strategy._unwrap_model(self.model)
        self.metrics = super().evaluate(eval_dataloader, steps)
        del model.config.mean, model.config.std
        if self.best is not None:
            store_tau(model)
            self.best.update(self.model, self.metrics, steps)
        return self.metrics


def preferred_score(score: Tensor, label: Tensor) -> Tensor:
    """(C,) log-odds and labels -> the log-odds (C,) of the answer that each label prefers, 0 where it prefers none.

    So a tie never counts as right, in whichever order it is written.
    """
    return torch.where(label < 0.5, -score, score).where(label != 0.5, 0)


def _check_finite(loss: Tensor, embedding: Tensor, names: list[str]) -> None:
    if not bool(torch.isfinite(loss) & torch.isfinite(embedding).all()):
        shown = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        raise FloatingPointError(
            f"loss {loss.item()} or an embedding is not finite in the batch of {shown}: look at these rows, lower "
            "--adam.lr, or train with --ds.param_dtype fp32"
        )


@torch.no_grad()
def _metrics(embedding: Tensor, gate: Tensor, score: Tensor, preferred: Tensor, tau: float) -> dict[str, float]:
    """Metrics that show whether the GPM learns, and whether a scalar reward would do.

    prob: mean probability of the preferred answer, 1/2 in a tie. score_scale: mean |score|, log-odds. gate_entropy: of
    the gate as a distribution over its k planes, nats. cyclic_share: the part of the scores among all the batch's
    embeddings, in [0, 1], that no scalar reward can express; a property of the embedding space: responses of
    different prompts are never compared. tau: the temperature.
    """
    weights = gate / gate.sum(-1, keepdim=True)
    return {
        "prob": torch.sigmoid(preferred).mean().item(),
        "score_scale": score.abs().mean().item(),
        "gate_entropy": torch.special.entr(weights).sum(-1).mean().item(),
        "cyclic_share": cyclic_share(group_scores(embedding.detach(), gate.mean(0), tau)).item(),
        "tau": tau,
    }
