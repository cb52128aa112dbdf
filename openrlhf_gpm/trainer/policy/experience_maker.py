"""From embeddings to groups to what an objective gives each response, in O(K) reward-model forwards.

Shapes: G prompts, K responses each; k planes, embeddings 2k wide.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from openrlhf_gpm import objectives
from openrlhf_gpm.core import Groups, bt_scores, cyclic_share, group_scores, quantiles, win_rates
from openrlhf_gpm.trainer.policy.actor import GIVEN
from openrlhf_gpm.trainer.policy.group_log import write_groups
from openrlhf_gpm.trainer.policy.opponent import RunOpponent
from openrlhf_gpm.trainer.policy.policy_actor import FORWARD
from openrlhf_gpm.trainer.policy.rows import tie_equals, unpack_rows
from openrlhf_gpm.trainer.policy.units import data_parallel_size, even_forwards, training_batch

FROZEN = "frozen/"
"""A frozen policy's log-probs of whole responses travel in `info` under this prefix, (B,) nats."""


class GroupExperienceMaker(RemoteExperienceMaker):
    """RemoteExperienceMaker, except that a response's reward is its standing in its group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objectives.from_args(self.args)
        self.opponent = RunOpponent(self.args)
        self.frozen = objectives.frozen_policies(self.args)
        self.step = 0  # of training, from 1; set by the controller
        self.rollout: list[Experience] = []  # the whole batch, also what is not trained
        self.statistics: dict[str, float] = {}  # of its groups

    def reward_inputs(self, samples_list: list[Experience]) -> dict[str, list[Any]]:
        """A GPM gets the prompt before templating and the response as text; upstream's reward gets token ids."""
        if self.args.reward_model_type != "gpm":
            return super().reward_inputs(samples_list)
        return {
            "prompts": [samples.labels for samples in samples_list],
            "responses": [self._response_texts(samples) for samples in samples_list],
        }

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Scores the groups; then OpenRLHF's advantages, or what the objective prepares and selects."""
        order = torch.tensor(list(itertools.chain.from_iterable(e.index for e in experiences)))
        if self.objective.own_loss and self.args.train.async_enable:
            for experience in experiences:  # the actor has moved since a policy before it sampled these
                experience.action_log_probs = sampler_log_probs(experience)
        rows = self._rows(experiences, order)
        if rows.dim() == 3:
            rows, first = tie_equals(rows)
        groups = Groups(_scores(rows), drift=self._drift(experiences, order))
        prompts = _in_prompt_order(experiences, order, lambda e: e.labels) if self._reads_prompts else []
        K = self.args.rollout.n_samples_per_prompt
        groups, seen = self.opponent.face(groups, prompts[::K], rows, self.step)
        given = self.objective.prepare(groups) if self.objective.own_loss else {}

        def scatter(name: str, per_response: Tensor) -> None:
            """(G, K) in the order of the prompts -> `info[name]` of each experience."""
            parts = per_response.reshape(-1)[order].split([len(e.index) for e in experiences])
            for experience, part in zip(experiences, parts, strict=True):
                experience.info[name] = part

        self._check_finite(experiences, given)
        statistics = group_statistics(groups, given) | seen
        if rows.dim() == 3:
            texts = _in_prompt_order(experiences, order, self._response_texts)
            statistics |= reading_statistics(rows, first, texts)
        gaps = [log_prob_gap(e) for e in experiences if e.rollout_log_probs is not None]
        if gaps:
            statistics["rollout/log_prob_gap_max"] = max(gaps)
        scatter("reward", self.objective.reward(groups))
        for experience in experiences:
            experience.rewards = experience.info["reward"]
        for name, values in given.items():
            scatter(GIVEN + name, values)
        self.rollout, self.statistics = experiences, statistics
        if self.args.gpm.log_groups:
            responses = _in_prompt_order(experiences, order, self._response_texts)
            write_groups(self.args.gpm.log_groups, self.step, prompts, responses, rows, groups, given)

        if self.objective.own_loss:
            for experience in experiences:
                experience.kl = None
        else:
            experiences = super().compute_advantages_and_returns(experiences)
        chosen = self.objective.select(groups)
        return training_batch(experiences, order, chosen, self.args, self.objective.together)

    @property
    def _reads_prompts(self) -> bool:
        return self.opponent.by_prompt or bool(self.args.gpm.log_groups)

    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        """Upstream's, with as many forward passes on each rank as on every other; then one of each frozen policy."""
        models = {"actor": self.actor_model_group, "critic": self.critic_model_group}
        models |= {"reward": self.reward_model_group, "ref": self.initial_model_group}
        ranks = [data_parallel_size(self.args, name) for name, group in models.items() if group is not None]
        samples = super().make_experience(even_forwards(samples_list, ranks))
        for name in self.frozen:
            refs = self.actor_model_group.async_run_method_batch(
                method_name=FORWARD + name,
                sequences=[each.sequences for each in samples],
                action_mask=[each.action_mask for each in samples],
                attention_mask=[each.attention_mask for each in samples],
            )
            copies = self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size
            for each, log_probs in zip(samples, self._flatten_results(refs, copies), strict=True):
                each.info[FROZEN + name] = (log_probs * each.action_mask).sum(-1)
        if self.args.train.colocate_all and self.frozen:
            ray.get(self.actor_model_group.async_run_method(method_name="empty_cache"))
        return samples[: len(samples_list)]

    def _drift(self, experiences: list[Experience], order: Tensor) -> dict[str, Tensor]:
        """`Groups.drift`: log pi_t less the frozen policy's log-prob of whole responses, (G, K) in prompt order."""
        drift = {}
        for name in self.frozen:
            per_response = torch.cat(
                [(e.action_log_probs * e.action_mask).sum(-1) - e.info.pop(FROZEN + name) for e in experiences]
            ).float()
            drift[name] = per_response[order.argsort()].unflatten(0, (-1, self.args.rollout.n_samples_per_prompt))
        return drift

    def _rows(self, experiences: list[Experience], order: Tensor) -> Tensor:
        """What the reward model returned, in the order of the prompts: (G, K, 3k + FACTS), or (G, K) of Bradley-Terry.

        Preferences exist only inside a prompt's group (science: decision 16).
        """
        rewards = torch.cat([e.rewards for e in experiences]).float()
        broken = ~torch.isfinite(rewards.reshape(len(rewards), -1)).all(-1)
        if broken.any():
            raise ValueError(
                f"{self.args.reward.model_name_or_path} returned nan or inf for {int(broken.sum())} of {len(rewards)} "
                "responses; check its checkpoint, or try --ds.param_dtype fp32"
            )
        ordered = torch.empty_like(rewards)
        ordered[order] = rewards
        return ordered.unflatten(0, (-1, self.args.rollout.n_samples_per_prompt))

    def _check_finite(self, experiences: list[Experience], given: dict[str, Tensor]) -> None:
        if not all(bool(torch.isfinite(e.action_log_probs[e.action_mask.bool()]).all()) for e in experiences):
            raise FloatingPointError(
                f"the policy's log-probs are not finite in step {self.step}: it has diverged, or "
                "--rollout.temperature is too low. Resume from an earlier checkpoint with a lower --actor.adam.lr"
            )
        for name, values in given.items():
            if not bool(torch.isfinite(values).all()):
                raise FloatingPointError(f"{name} is not finite in step {self.step}: raise the objective's beta")

    def _response_texts(self, samples: Experience) -> list[str]:
        """What the policy wrote, with every special token spelled out but the one that ended it."""
        # action_mask is aligned with the next token, hence the shift by one.
        rows = zip(samples.sequences, samples.action_mask, strict=True)
        ids = [row[1:][mask.bool()].tolist() for row, mask in rows]
        special = set(self.tokenizer.all_special_ids)
        ids = [row[:-1] if row and row[-1] in special else row for row in ids]
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=False)
        return texts


def later_tokens(experience: Experience) -> Tensor:
    """(B, A) True on the sampled tokens but the first of each response.

    vLLM is asked for at least one token and never samples EOS first, so its distribution there is not the policy's.
    """
    mask = experience.action_mask.bool()
    return mask & (mask.cumsum(-1) > 1)


def log_prob_gap(experience: Experience) -> float:
    """Largest |log-prob of vLLM - of the actor| over `later_tokens`, nats: near 0 where their weights are equal."""
    gap = (experience.rollout_log_probs - experience.action_log_probs).abs()[later_tokens(experience)]
    return gap.max().item() if gap.numel() else 0.0


def sampler_log_probs(experience: Experience) -> Tensor:
    """(B, A) log-probs of the policy that sampled: vLLM's, and on first tokens the actor's."""
    return torch.where(later_tokens(experience), experience.rollout_log_probs, experience.action_log_probs)


def _scores(rows: Tensor) -> Tensor:
    """(G, K, 3k + FACTS) of a GPM, or (G, K) rewards -> (G, K, K) log-odds."""
    if rows.dim() == 2:
        return bt_scores(rows)
    parts = unpack_rows(rows)
    return group_scores(parts.embeddings, parts.gate_over_tau[:, 0])


def reading_statistics(rows: Tensor, first: Tensor, texts: list[str]) -> dict[str, float]:
    """What the GPM did not read as the policy wrote it, as shares of the responses, [0, 1].

    rows (G, K, 3k + FACTS) and first (G, K): see `tie_equals`; texts: G K responses, group after group.
    reward_truncated: cut to fit its max_len. control_text: with control tokens of its tokenizer, read as text.
    judged_equal: another text than that of an earlier response with the same tokens, so that their score is 0.
    """
    parts = unpack_rows(rows)
    K = first.shape[1]
    equal = [texts[n] != texts[n - n % K + i] for n, i in enumerate(first.flatten().tolist())]
    return {
        "rollout/reward_truncated": parts.truncated.mean().item(),
        "rollout/control_text": parts.escaped.mean().item(),
        "rollout/judged_equal": sum(equal) / len(equal),
    }


def group_statistics(groups: Groups, given: dict[str, Tensor]) -> dict[str, float]:
    """Means over the groups, and quantiles of what the objective prepared for their responses and of the drift.

    win_rate_spread: best minus worst win rate of a group, [0, 1]. cyclic_share: part of a group's scores that no
    scalar reward can express, [0, 1]. score_scale: mean |score| between two different responses, log-odds.
    """
    K = groups.scores.shape[-1]
    rates = win_rates(groups.scores)
    means = {
        "win_rate_spread": (rates.amax(-1) - rates.amin(-1)).mean().item(),
        "cyclic_share": cyclic_share(groups.scores).mean().item(),
        "score_scale": (groups.scores.abs().sum((-1, -2)) / (K * (K - 1))).mean().item(),
    }
    named = dict(given) | {f"drift_{name}": values for name, values in groups.drift.items()}
    for name, values in named.items():
        means |= quantiles(name, values.flatten())
    return means


def _in_prompt_order(
    experiences: list[Experience], order: Tensor, get: Callable[[Experience], list[Any]]
) -> list[Any]:
    """One item per response, gathered from the experiences into the order of the prompts."""
    items = list(itertools.chain.from_iterable(get(experience) for experience in experiences))
    return [items[i] for i in torch.argsort(order).tolist()]
