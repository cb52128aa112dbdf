"""The Ray actor that scores rollouts: texts in, preference embeddings out, a prompt and each response once."""

from __future__ import annotations

from typing import Any

import ray
from deepspeed.accelerator import get_accelerator
from openrlhf.trainer.ray.launcher import BaseRewardModelActor
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.samples.formatting import Formatter
from openrlhf_gpm.scoring.scorer import embed_batch
from openrlhf_gpm.trainer.checkpoint_checks import training_forest_obstacle
from openrlhf_gpm.trainer.policy.rows import pack_rows

logger = init_logger(__name__)


class BaseGPMRewardActor(BaseRewardModelActor):
    """The upstream reward actor, except that it reads texts and returns embeddings.

    Texts, because the GPM has its own tokenizer and chat template; the policy's may be others.
    """

    def init_model_from_pretrained(self, strategy: Any, pretrain: str) -> None:
        """Upstream's, and what reads texts as the GPM was trained to."""
        super().init_model_from_pretrained(strategy, pretrain)
        self.config = GPMConfig.from_pretrained_config(AutoConfig.from_pretrained(pretrain))
        self.formatter = Formatter.from_config(AutoTokenizer.from_pretrained(pretrain), self.config)
        obstacle = training_forest_obstacle(pretrain, strategy.args.ds, self.config.max_len)
        self.share_prompt = obstacle is None
        if obstacle and strategy.is_rank_0():
            logger.info("prompts are encoded once a response, not once a group: %s", obstacle)

    def forward(self, prompts: list[Any], responses: list[str]) -> Tensor:
        """One micro-batch of B (prompt, response) -> (B, 3k) fp32, see `pack_rows`."""
        device = get_accelerator().current_device_name()
        embedding, gate = embed_batch(
            self.model, self.formatter, prompts, responses, device, share_prompt=self.share_prompt
        )
        return pack_rows(embedding, gate, self.config.tau)


GPMRewardActor = ray.remote(num_gpus=1)(BaseGPMRewardActor)
