"""Turns each prompt's group of K responses into scores, win rates and targets, in O(K) reward-model forwards.

Shapes: G prompts, K responses each; k planes, embeddings 2k wide.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
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
from openrlhf_gpm.trainer.policy.group_log import write_groups


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
        ids = [row[1:][mask.bool()] for row, mask in zip(samples.sequences, samples.action_mask, strict=True)]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Scores the groups, then upstream's shaping; GPO and SPPO put their target where advantages go."""
        order = torch.tensor(list(itertools.chain.from_iterable(e.index for e in experiences)))
        groups = self._score_groups(experiences, order)
        values, target = self._values(groups.scores), self._target(groups.scores)

        def split(per_response: Tensor) -> Iterable[tuple[Experience, Tensor]]:
            """(G, K) in the order of the prompts -> each experience with its responses' part."""
            chunks = per_response.reshape(-1)[order].split([len(e.index) for e in experiences])
            return zip(experiences, chunks, strict=True)

        for experience, value in split(values):
            experience.rewards = experience.info["reward"] = value
        for name, metric in group_metrics(groups.scores).items():
            for experience, value in split(metric):
                experience.info[name] = value
        if self.args.gpm.log_groups:
            prompts = _in_prompt_order(experiences, order, lambda e: e.labels if e.labels[0] else e.prompts)
            responses = _in_prompt_order(experiences, order, self._response_texts)
            write_groups(self.args.gpm.log_groups, self.global_step, prompts, responses, groups, target)

        if target is None:
            return super().compute_advantages_and_returns(experiences)
        for experience, value in split(target):
            _set_target(experience, value)
        if self.args.gpo.responses == "best_worst":
            for experience, keep in split(best_worst_mask(values)):
                # An empty action mask takes a response out of the loss and out of upstream's normalisation alike.
                experience.action_mask = experience.action_mask * keep.unsqueeze(-1).to(experience.action_mask.dtype)
        return experiences

    def _score_groups(self, experiences: list[Experience], order: Tensor) -> Groups:
        """Back to the order of the prompts: preferences exist only inside a group (science: decision 16)."""
        rewards = torch.cat([e.rewards for e in experiences])
        broken = ~torch.isfinite(rewards.reshape(len(rewards), -1)).all(-1)
        if broken.any():
            raise ValueError(
                f"{self.args.reward.model_name_or_path} returned nan or inf for {int(broken.sum())} of {len(rewards)} "
                "responses; check its checkpoint, or try --ds.param_dtype fp32"
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


def _in_prompt_order(
    experiences: list[Experience], order: Tensor, get: Callable[[Experience], list[Any]]
) -> list[Any]:
    """One item a response, gathered from the experiences into the order of the prompts."""
    items = list(itertools.chain.from_iterable(get(experience) for experience in experiences))
    return [items[i] for i in torch.argsort(order).tolist()]


def _set_target(experience: Experience, target: Tensor) -> None:
    """`target` (B,) in nats, on every action token; the loss reads it back from there."""
    experience.advantages = target.unsqueeze(-1) * experience.action_mask
    experience.returns = experience.advantages.clone()
    experience.info["return"] = target
    experience.kl = None
