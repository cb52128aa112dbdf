"""Arguments of the trunk for samples that are padded, packed, or in a forest that shares prompts.

Notation: B samples, T columns, N tokens. Indices are into the trunk's output with its first two dims flattened, so
all three forms are read in the same way.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.samples.forest import Forest


@dataclass(frozen=True)
class TrunkInputs:
    """Arguments of the trunk, and where to look in what it returns."""

    inputs: dict[str, Any]
    """Keyword arguments of the trunk."""

    last_at: Tensor
    """(B,) index of each sample's last token."""

    response_at: Tensor
    """(R,) indices of the responses' tokens, EOS included, sample after sample."""

    response_lens: Tensor
    """(B,) how many of them are each sample's."""

    gate_at: Tensor
    """(B,) index of each prompt's last token, which the gate reads; in a forest (G,), one per group."""

    index: Tensor | None = None
    """(B T,) where each column of the batch's input_ids (flattened) went; None if none moved."""


def padded_inputs(input_ids: Tensor, attention_mask: Tensor, prompt_lens: Tensor) -> TrunkInputs:
    """One sample per row, padded left or right: (B, T), (B, T), (B,)."""
    columns = input_ids.shape[1]
    row = torch.arange(len(input_ids), device=input_ids.device) * columns
    position_ids = (attention_mask.cumsum(-1) - 1).clamp_min(0)
    in_response = (position_ids >= prompt_lens[:, None]) & attention_mask.bool()
    return TrunkInputs(
        {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids},
        last_at=row + columns - 1 - attention_mask.flip(1).argmax(1),
        response_at=in_response.flatten().nonzero().squeeze(-1),
        response_lens=in_response.sum(1),
        gate_at=row + attention_mask.argmax(1) + prompt_lens - 1,
    )


def packed_inputs(input_ids: Tensor, attention_mask: Tensor, prompt_lens: Tensor) -> TrunkInputs:
    """All samples end to end in one row, without padding; position_ids restart in each: (B, T), (B, T), (B,)."""
    lengths = attention_mask.sum(1)
    ends = lengths.cumsum(0)
    starts = ends - lengths
    ids = input_ids[attention_mask.bool()]
    position_ids = torch.arange(len(ids), device=ids.device) - starts.repeat_interleave(lengths)
    in_response = position_ids >= prompt_lens.repeat_interleave(lengths)
    return TrunkInputs(
        # No mask: attention kernels find the sample borders where position_ids restart, and only without a cache.
        {"input_ids": ids[None], "attention_mask": None, "position_ids": position_ids[None]},
        last_at=ends - 1,
        response_at=in_response.nonzero().squeeze(-1),
        response_lens=lengths - prompt_lens,
        gate_at=starts + prompt_lens - 1,
        index=attention_mask.flatten().cumsum(0) - 1,
    )


def forest_inputs(input_ids: Tensor, forest: Forest) -> TrunkInputs:
    """One row in which the shared tokens of a group come once: (1, N), see `collate_forest`."""
    # The mask is there so that transformers makes none; attention goes by the forest.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    return TrunkInputs(
        {"input_ids": input_ids, "attention_mask": mask, "position_ids": forest.position_ids, "forest": forest},
        last_at=forest.last_at,
        response_at=forest.response_at,
        response_lens=forest.response_lens,
        gate_at=forest.gate_at,
    )
