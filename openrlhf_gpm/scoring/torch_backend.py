"""From groups of encoded samples to embeddings and gates: what a backend is, and the one that runs the model here."""

import logging
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.trunks import forest_obstacle, sliding_window
from openrlhf_gpm.samples.batch import GroupBatch, collate_groups, plan_batches
from openrlhf_gpm.samples.forest import gate_sample
from openrlhf_gpm.samples.formatting import Encoded

logger = logging.getLogger(__name__)

BATCH_TOKENS = 16384
SHARE_PROMPT = ("auto", "off")


class Backend(Protocol):
    """What turns token ids into embeddings."""

    @property
    def config(self) -> GPMConfig: ...
    @property
    def device(self) -> torch.device: ...

    def embed_groups(self, groups: Sequence[Sequence[Encoded]]) -> tuple[Tensor, Tensor]:
        """G groups of samples, N in all -> v (N, 2k) in order and one gate a group (G, k), fp32 on the CPU.

        The gate is that of the group's `gate_sample`; all ones without a gate.
        """
        ...


@torch.no_grad()
def embed_batch(model: Any, batch: GroupBatch, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """One model call on G groups of N samples -> v (N, 2k) in order and one gate per group (G, k), fp32 on the CPU.

    `model` may be wrapped (DeepSpeed); its train or eval mode is the caller's.
    """
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    v, gate = model(**inputs)
    return v.float().cpu(), gate.float().cpu()[batch.gate_at]


class TorchBackend:
    """Embeddings from a loaded GPM: the prompt once where that pays and is exact, else every sample in full.

    Args:
        model: a GPM in eval mode.
        device: where it is.
        batch_tokens: tokens of a forward pass, padding included.
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
        if batch_tokens < 1:
            raise ValueError(f"--batch_tokens must be >= 1, got {batch_tokens}")
        check_share_prompt(share_prompt)
        self.model = model
        self.config: GPMConfig = model.gpm_config
        self.device = torch.device(device)
        self.batch_tokens = batch_tokens
        self.pad_token_id = pad_token_id
        self.share_prompt = share_prompt
        self.longest_shared: int | None = None  # tokens of a sample, where a sliding window sets a limit
        if share_prompt == "auto":
            obstacle = forest_obstacle(model.config)
            if obstacle:
                logger.warning("prompts are not shared between responses: %s", obstacle)
                self.share_prompt = "off"
            else:
                self.longest_shared = sliding_window(model.config)

    def embed_groups(self, groups: Sequence[Sequence[Encoded]]) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        v = torch.empty(sum(map(len, groups)), self.config.dim)
        gate = torch.ones(len(groups), self.config.k)
        rows = group_rows(groups)
        readers = [gate_sample(group) if group else None for group in groups]
        for parts, share in plan_batches(groups, self.batch_tokens, self.share_prompt == "auto", self.longest_shared):
            batch = collate_groups([[groups[g][i] for i in which] for g, which in parts], self.pad_token_id, share)
            v_batch, gate_batch = embed_batch(self.model, batch, self.device)
            v[[rows[g][i] for g, which in parts for i in which]] = v_batch
            for (g, which), gate_part in zip(parts, gate_batch, strict=True):
                if readers[g] in which:  # a group that is too large comes in several parts
                    gate[g] = gate_part
        return v, gate


def pick_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, by default the GPU where there is one. Raises ValueError where torch finds no such."""
    gpus = torch.cuda.device_count()
    try:
        picked = torch.device(device or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {device} is not the name of a device: give cuda, cuda:1 or cpu") from error
    if picked.type == "cuda" and (picked.index or 0) >= gpus:
        raise ValueError(f"--device {device}: torch finds {gpus or 'no'} GPUs here; give another, or leave it out")
    return picked


def check_share_prompt(share_prompt: str) -> None:
    """Raise ValueError unless it is one of `SHARE_PROMPT`."""
    if share_prompt not in SHARE_PROMPT:
        raise ValueError(f"--share_prompt must be one of {', '.join(SHARE_PROMPT)}; got {share_prompt!r}")


def group_rows(groups: Sequence[Sequence[Encoded]]) -> list[list[int]]:
    """For each group, where its samples are when all are laid in a row."""
    ends = list(accumulate(map(len, groups), initial=0))
    return [list(range(start, end)) for start, end in pairwise(ends)]
