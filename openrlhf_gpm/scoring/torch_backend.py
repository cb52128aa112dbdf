"""Embeddings from a loaded GPM, with transformers: a group's prompt once where that is exact and saves tokens."""

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.trunks import forest_obstacle, sliding_window
from openrlhf_gpm.samples.batch import GroupBatch, collate_groups, plan_batches
from openrlhf_gpm.samples.forest import gate_sample
from openrlhf_gpm.samples.formatting import Encoded
from openrlhf_gpm.scoring.options import BATCH_TOKENS, check_options

logger = logging.getLogger(__name__)


@torch.no_grad()
def embed_batch(model: Any, batch: GroupBatch, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """One model call on G groups of N samples -> v (N, 2k) in order and one gate per group (G, k), fp32 on the CPU.

    `model` may be wrapped (DeepSpeed); its train or eval mode is the caller's.
    """
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    v, gate = model(**inputs)
    return v.float().cpu(), gate.float().cpu()[batch.gate_at]


class TorchBackend:
    """A loaded GPM as the backend of a `GPM`.

    Args:
        model: a GPM in eval mode.
        device: where it is.
        batch_tokens: tokens per forward pass, padding included.
        pad_token_id: any id.
        share_prompt: "auto", or "off" to encode every sample in full.

    Raises:
        ValueError: batch_tokens < 1 or another share_prompt; the text names the flag.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device | str = "cpu",
        batch_tokens: int = BATCH_TOKENS,
        pad_token_id: int = 0,
        share_prompt: str = "auto",
    ) -> None:
        check_options(batch_tokens, share_prompt)
        self.model = model
        self.config: GPMConfig = model.gpm_config
        self.device = torch.device(device)
        self.batch_tokens = batch_tokens
        self.pad_token_id = pad_token_id
        obstacle = forest_obstacle(model.config) if share_prompt == "auto" else None
        if obstacle:
            logger.warning("prompts are not shared between responses: %s", obstacle)
        self.share_prompt = share_prompt == "auto" and obstacle is None
        self.longest_shared = sliding_window(model.config) if self.share_prompt else None  # tokens of a sample

    def embed_groups(self, groups: Sequence[Sequence[Encoded]]) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        starts = list(accumulate(map(len, groups), initial=0))
        v = torch.empty(starts.pop(), self.config.dim)
        gate = torch.ones(len(groups), self.config.k)
        readers = [gate_sample(group) if group else None for group in groups]
        for parts, share in plan_batches(groups, self.batch_tokens, self.share_prompt, self.longest_shared):
            batch = collate_groups([[groups[g][i] for i in which] for g, which in parts], self.pad_token_id, share)
            v_batch, gate_batch = embed_batch(self.model, batch, self.device)
            v[[starts[g] + i for g, which in parts for i in which]] = v_batch
            for (g, which), gate_part in zip(parts, gate_batch, strict=True):
                if readers[g] in which:  # a group that is too large comes in several parts
                    gate[g] = gate_part
        return v, gate
