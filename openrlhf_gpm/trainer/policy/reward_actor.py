"""The Ray actor that scores rollouts: texts in, preference embeddings out; a prompt is encoded once per group."""

from __future__ import annotations

from typing import Any

import ray
import torch
from deepspeed.accelerator import get_accelerator
from openrlhf.trainer.ray.launcher import BaseRewardModelActor
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor

from openrlhf_gpm.checkpoints.checkpoint import open_pretrained
from openrlhf_gpm.samples.batch import collate_groups, encode_groups, unique_groups
from openrlhf_gpm.samples.forest import token_counts
from openrlhf_gpm.scoring.torch_backend import embed_batch
from openrlhf_gpm.trainer.checkpoint_checks import reward_attention
from openrlhf_gpm.trainer.policy.held_port import HeldPort
from openrlhf_gpm.trainer.policy.rows import pack_rows

logger = init_logger(__name__)


class BaseGPMRewardActor(HeldPort, BaseRewardModelActor):
    """The upstream reward actor, except that it reads texts and returns embeddings.

    It reads texts because the GPM's tokenizer and chat template may differ from the policy's.
    """

    full_tokens = 0
    """Tokens of a step's samples, each in full."""

    encoded_tokens = 0
    """Tokens that the model read of them, padding not counted."""

    def init_model_from_pretrained(self, strategy: Any, pretrain: str) -> None:
        """Upstream's, with `reward_attention`, and the formatter that the GPM was trained with."""
        ds = strategy.args.ds  # this process's own copy
        ds.attn_implementation, ds.packing_samples = reward_attention(strategy.args)
        super().init_model_from_pretrained(strategy, pretrain)
        checkpoint = open_pretrained(pretrain, "--reward.model_name_or_path", strategy.args.trust_remote_code)
        self.config = checkpoint.gpm
        self.formatter = checkpoint.formatter().cut_at_positions()
        obstacle = checkpoint.forest_obstacle(ds.attn_implementation, self.config.max_len)
        self.share_prompt = obstacle is None
        if obstacle and strategy.is_rank_0():
            logger.info("prompts are encoded once per response, not once per group: %s", obstacle)

    def forward(self, prompts: list[Any], responses: list[str]) -> Tensor:
        """One micro-batch of B (prompt, response) -> (B, 3k + FACTS) fp32, see `pack_rows`."""
        device = get_accelerator().current_device_name()
        groups = encode_groups(self.formatter, prompts, responses)
        # One call in any case: ranks that share the prompt and ranks that do not still meet in every layer of ZeRO-3.
        unique, rows = unique_groups(groups)
        batch = collate_groups(unique, self.formatter.pad_token_id, self.share_prompt)
        full, forest = token_counts(unique)
        self.full_tokens += full
        self.encoded_tokens += forest if "forest" in batch.inputs else full
        embedding, gate = embed_batch(self.model, batch, device)
        sizes = torch.tensor([len(group) for group in groups])
        samples = [sample for group in groups for sample in group]
        return pack_rows(embedding[rows], gate.repeat_interleave(sizes, dim=0), self.config.tau, samples)

    def execute_batch(self, method_name: str, all_data: Any, start_idx: int, end_idx: int) -> list[Any]:
        """Upstream's, which calls a method on each micro-batch of a step; then the log says what sharing saved."""
        self.full_tokens = self.encoded_tokens = 0
        results: list[Any] = super().execute_batch(method_name, all_data, start_idx, end_idx)
        if self.full_tokens and self.strategy.is_rank_0():
            logger.info(saving(self.full_tokens, self.encoded_tokens))
        return results


def saving(full: int, encoded: int) -> str:
    """What the log says of a step: tokens of all samples in full, and those that were encoded."""
    return f"each prompt once: {encoded} of {full} tokens encoded, {1 - encoded / full:.0%} saved"


GPMRewardActor = ray.remote(num_gpus=1)(BaseGPMRewardActor)
