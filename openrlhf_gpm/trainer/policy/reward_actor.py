"""The Ray actor that scores rollouts: texts in, preference embeddings out, a prompt and each response once."""

from __future__ import annotations

from typing import Any

import ray
import torch
from deepspeed.accelerator import get_accelerator
from openrlhf.trainer.ray.launcher import BaseRewardModelActor
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor

from openrlhf_gpm.checkpoints.checkpoint import open_pretrained
from openrlhf_gpm.samples.batch import collate_groups, encode_groups
from openrlhf_gpm.scoring.torch_backend import embed_batch
from openrlhf_gpm.trainer.policy.rows import pack_rows

logger = init_logger(__name__)


class BaseGPMRewardActor(BaseRewardModelActor):
    """The upstream reward actor, except that it reads texts and returns embeddings.

    Texts, because the GPM has its own tokenizer and chat template; the policy's may be others.
    """

    def init_model_from_pretrained(self, strategy: Any, pretrain: str) -> None:
        """Upstream's, and what reads texts as the GPM was trained to."""
        super().init_model_from_pretrained(strategy, pretrain)
        checkpoint = open_pretrained(pretrain, "--reward.model_name_or_path")
        self.config = checkpoint.gpm
        self.formatter = checkpoint.formatter()
        obstacle = checkpoint.forest_obstacle(strategy.args.ds.attn_implementation, self.config.max_len)
        self.share_prompt = obstacle is None
        if obstacle and strategy.is_rank_0():
            logger.info("prompts are encoded once per response, not once per group: %s", obstacle)

    def forward(self, prompts: list[Any], responses: list[str]) -> Tensor:
        """One micro-batch of B (prompt, response) -> (B, 3k + 1) fp32, see `pack_rows`."""
        device = get_accelerator().current_device_name()
        groups = encode_groups(self.formatter, prompts, responses)
        # One call in any case: ranks that share the prompt and ranks that do not still meet in every layer of ZeRO-3.
        batch = collate_groups(groups, self.formatter.pad_token_id, self.share_prompt)
        embedding, gate = embed_batch(self.model, batch, device)
        sizes = torch.tensor([len(group) for group in groups])
        truncated = torch.tensor([sample.truncated for group in groups for sample in group])
        return pack_rows(embedding, gate.repeat_interleave(sizes, dim=0), self.config.tau, truncated)


GPMRewardActor = ray.remote(num_gpus=1)(BaseGPMRewardActor)
