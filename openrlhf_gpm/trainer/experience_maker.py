"""Turns each prompt's group of K responses into scores, win rates and targets, in O(K) reward-model forwards.

Shapes: G prompts, K responses each; k planes, embeddings 2k wide.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from openrlhf_gpm.core import (
    best_worst_mask,
    bt_scores,
    cyclic_share,
    gpo_target,
    group_scores,
    mean_scores,
    sppo_target,
    win_rates,
)
from openrlhf_gpm.trainer.group_log import write_groups


@dataclass
class Groups:
    """The comparisons inside one rollout batch, in the order of the prompts."""

    rows: Tensor  # (G, K, 3k) embeddings and gate / tau of a GPM, or (G, K) rewards of a Bradley-Terry model
    scores: Tensor  # (G, K, K) log-odds that the row's response beats the column's

    @classmethod
    def from_rewards(cls, rewards: Tensor, k: int) -> Groups:
        """`rewards`: what the reward actor returned for every response, (G * K, 3k) or (G * K,)."""
        rows = rewards.float().unflatten(0, (-1, k))
        if rows.dim() == 2:
            return cls(rows, bt_scores(rows))
        dim = rows.shape[-1] * 2 // 3
        return cls(rows, group_scores(rows[..., :dim], rows[..., dim:]))


class GroupExperienceMaker(RemoteExperienceMaker):
    """RemoteExperienceMaker, except that a response's reward is its standing in its group."""

    global_step = 0  # set by the trainer; names the step in the group log

    def reward_inputs(self, samples_list: list[Experience]) -> dict[str, list[Any]]:
        """A GPM is told the prompt before templating and the response as text; upstream's reward, token ids."""
        if self.args.reward_model_type != "gpm":
            return super().reward_inputs(samples_list)
        return {
            "prompts": [samples.labels for samples in samples_list],
            "responses": [self._response_texts(samples) for samples in samples_list],
        }

    def _response_texts(self, samples: Experience) -> list[str]:
        # action_mask is aligned with the next token, hence the shift by one.
        ids = [row[1:][mask.bool()] for row, mask in zip(samples.sequences, samples.action_mask)]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Scores the groups, then upstream's shaping; GPO and SPPO put their target where advantages go."""
        order = torch.tensor(list(itertools.chain.from_iterable(e.index for e in experiences)))
        groups = self._score_groups(experiences, order)
        values = self._values(groups.scores)
        _scatter(experiences, order, values, lambda e, value: _set_reward(e, value))
        for name, metric in group_metrics(groups.scores).items():
            _scatter(experiences, order, metric, lambda e, value, name=name: e.info.update({name: value}))

        target = self._target(groups.scores)
        if target is None:
            experiences = super().compute_advantages_and_returns(experiences)
        else:
            _scatter(experiences, order, target, _set_target)
            if self.args.gpo.responses == "best_worst":
                keep = best_worst_mask(values)
                _scatter(experiences, order, keep, lambda e, value: setattr(e, "action_mask", _keep(e, value)))
        if self.args.gpm.log_groups:
            texts = _ordered(experiences, order, self._response_texts)
            prompts = _ordered(experiences, order, lambda e: e.labels if e.labels[0] else e.prompts)
            write_groups(self.args.gpm.log_groups, self.global_step, prompts, texts, groups, target)
        return experiences

    def _score_groups(self, experiences: list[Experience], order: Tensor) -> Groups:
        """Back to the order of the prompts: preferences exist only inside a group (science: decision 16)."""
        rewards = torch.cat([e.rewards for e in experiences])
        if not torch.isfinite(rewards).all():
            raise ValueError(
                f"the reward model {self.args.reward.model_name_or_path} returned nan or inf for "
                f"{(~torch.isfinite(rewards.flatten(1).sum(-1) if rewards.dim() > 1 else rewards)).sum()} responses"
            )
        ordered = torch.empty_like(rewards)
        ordered[order] = rewards
        return Groups.from_rewards(ordered, self.args.rollout.n_samples_per_prompt)

    def _values(self, scores: Tensor) -> Tensor:
        """(G, K, K) -> (G, K): what a response's reward is, mean score or win rate."""
        loss = self.args.actor.policy_loss_type
        by_win_rate = loss == "sppo" or (loss != "gpo" and self.args.gpm.reward == "win_rate")
        return win_rates(scores) if by_win_rate else mean_scores(scores)

    def _target(self, scores: Tensor) -> Tensor | None:
        """(G, K, K) -> (G, K), nats; None for the losses that read advantages."""
        gpo, loss = self.args.gpo, self.args.actor.policy_loss_type
        shared = {"include_self": gpo.include_self, "clip": gpo.target_clip}
        if loss == "gpo":
            return gpo_target(scores, gpo.beta, baseline=gpo.baseline, **shared)
        if loss == "sppo":
            return sppo_target(scores, gpo.beta, hard=gpo.hard, **shared)
        return None


def group_metrics(scores: Tensor) -> dict[str, Tensor]:
    """Per-response metrics, (G, K, K) -> (G, K) each; group values are repeated over the group.

    win_rate_spread: best minus worst win rate of the group, [0, 1]. cyclic_share: part of the group's scores that no
    scalar reward can express, [0, 1]. score_scale: mean |score| between two different responses, log-odds.
    """
    k = scores.shape[-1]
    rates = win_rates(scores)
    per_group = {
        "win_rate_spread": rates.amax(-1) - rates.amin(-1),
        "cyclic_share": cyclic_share(scores),
        "score_scale": scores.abs().sum((-1, -2)) / (k * (k - 1)),
    }
    return {name: value.unsqueeze(-1).expand(-1, k) for name, value in per_group.items()}


def _scatter(experiences: list[Experience], order: Tensor, values: Tensor, assign: Any) -> None:
    """Give each experience its rows of `values` (G, K), which are in the order of the prompts."""
    chunks = values.reshape(-1)[order].split([len(e.index) for e in experiences])
    for experience, chunk in zip(experiences, chunks):
        assign(experience, chunk)


def _ordered(experiences: list[Experience], order: Tensor, get: Any) -> list[Any]:
    """The inverse of `_scatter` for lists: one item a response, in the order of the prompts."""
    items = list(itertools.chain.from_iterable(get(e) for e in experiences))
    return [items[i] for i in torch.argsort(order).tolist()]


def _set_reward(experience: Experience, value: Tensor) -> None:
    experience.rewards = value
    experience.info["reward"] = value


def _set_target(experience: Experience, target: Tensor) -> None:
    experience.advantages = target.unsqueeze(-1) * experience.action_mask
    experience.returns = experience.advantages.clone()
    experience.info["return"] = target
    experience.kl = None


def _keep(experience: Experience, keep: Tensor) -> Tensor:
    """An empty action mask takes a response out of the loss and out of upstream's normalisation alike."""
    return experience.action_mask * keep.unsqueeze(-1).to(experience.action_mask.dtype)
