"""How samples lie in the rows that the trunk reads: padded, packed, or as a tree that shares the prompt.

Notation: B samples, G groups of samples that share a prompt, T columns, N tokens. Indices are into the trunk's output
with its first two dims flattened, so that every layout is used in the same way.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.models.batching import fullest_prompt, shared_length
from openrlhf_gpm.models.formatting import Encoded

PREFIX, PADDING = 0, -1
TREE_GAIN = 0.9  # a tree is taken when it costs at most this share of full encoding


@dataclass(frozen=True)
class Layout:
    """What the trunk is called with, and where to look in what it returns."""

    inputs: dict[str, Any]
    """input_ids, attention_mask and position_ids of the trunk."""

    first: Tensor
    """(B,) index of each sample's first token; (G,) of each row's in a tree."""

    last: Tensor
    """(B,) index of each sample's last token."""

    index: Tensor | None = None
    """Index of each column of the batch's input_ids (flattened); None where it did not move."""


def padded_layout(input_ids: Tensor, attention_mask: Tensor) -> Layout:
    """One sample a row, padded left or right: (B, T), (B, T)."""
    columns = input_ids.shape[1]
    row = torch.arange(len(input_ids), device=input_ids.device) * columns
    return Layout(
        {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(-1) - 1).clamp_min(0),
        },
        first=row + attention_mask.argmax(1),
        last=row + columns - 1 - attention_mask.flip(1).argmax(1),
    )


def packed_layout(input_ids: Tensor, attention_mask: Tensor) -> Layout:
    """All samples end to end in one row, without their padding; position_ids restart at 0 in each: (B, T), (B, T)."""
    lengths = attention_mask.sum(1)
    ends = lengths.cumsum(0)
    starts = ends - lengths
    ids = input_ids[attention_mask.bool()]
    position_ids = torch.arange(len(ids), device=ids.device) - starts.repeat_interleave(lengths)
    return Layout(
        # No mask: attention kernels find the sample borders where position_ids restart, and only without a cache.
        {"input_ids": ids[None], "attention_mask": None, "position_ids": position_ids[None]},
        first=starts,
        last=ends - 1,
        index=attention_mask.flatten().cumsum(0) - 1,
    )


def tree_layout(input_ids: Tensor, segments: Tensor, dtype: torch.dtype) -> Layout:
    """A group a row: the tokens that its samples share, then what each adds: (G, T), (G, T) as of `collate_trees`.

    A token sees the shared tokens and the earlier ones of its own segment, at the positions that it would have in a
    row of its own, so every number is that of full encoding. dtype: of the trunk, for the additive mask.
    """
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    starts_here = torch.ones_like(segments, dtype=torch.bool)
    starts_here[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(starts_here, columns, 0).cummax(1).values
    prefix = (segments == PREFIX).sum(1, keepdim=True)
    position_ids = columns - start + torch.where(segments > PREFIX, prefix, 0)

    visible = (segments[:, None, :] == PREFIX) | (segments[:, None, :] == segments[:, :, None])
    visible &= columns[None, None, :] <= columns[None, :, None]  # (G, T, T)
    mask = torch.zeros(visible.shape, dtype=dtype, device=input_ids.device)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)

    ends_here = segments > PREFIX
    ends_here[:, :-1] &= segments[:, :-1] != segments[:, 1:]
    return Layout(
        {"input_ids": input_ids, "attention_mask": mask[:, None], "position_ids": position_ids},
        first=torch.arange(len(input_ids), device=input_ids.device) * input_ids.shape[1],
        last=ends_here.flatten().nonzero().squeeze(-1),  # row by row, segment by segment: the order of the samples
    )


def tree_pays(groups: list[list[Encoded]], hidden_size: int) -> bool:
    """Whether a batch of these groups costs less as trees than in full, padding and attention included."""
    lengths = [[len(sample.input_ids) for sample in group] for group in groups]
    width = max(sum(own) - (len(own) - 1) * shared_length(group) for own, group in zip(lengths, groups, strict=True))
    full = _cost(sum(map(len, lengths)), max(map(max, lengths)), hidden_size)
    return _cost(len(groups), width, hidden_size) <= TREE_GAIN * full


def _cost(rows: int, width: int, hidden_size: int) -> float:
    """Of a batch of this shape, in tokens that only pass linear layers.

    A layer of a transformer has about 12 H^2 weights, and attention multiplies 2 H numbers for each column that a
    token may look at: a mask spares none. So a long row with many responses costs more than it shares.
    """
    return rows * width * (1 + width / (6 * hidden_size))


def collate_trees(groups: list[list[Encoded]], pad_token_id: int) -> dict[str, Tensor]:
    """One row a group, right-padded: LongTensors input_ids (G, T), segments (G, T) and prompt_lens (G,).

    segments: 0 on tokens that all samples share, j = 1, 2 ... on those of sample j alone, -1 on padding.
    prompt_lens: the column of the prompt's last token, plus 1, in the sample with the longest prompt: for the gate.
    """
    ids, segments, prompt_lens = [], [], []
    for samples in groups:
        prefix = shared_length(samples)
        own = [sample.input_ids[prefix:] for sample in samples]
        ids.append(torch.tensor(samples[0].input_ids[:prefix] + [i for tail in own for i in tail], dtype=torch.long))
        lengths = torch.tensor([prefix, *map(len, own)])
        segments.append(torch.arange(len(lengths)).repeat_interleave(lengths))
        fullest = fullest_prompt(samples)
        before = sum(map(len, own[:fullest])) if samples[fullest].prompt_len > prefix else 0
        prompt_lens.append(samples[fullest].prompt_len + before)

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return {
        "input_ids": pad(ids, pad_token_id),
        "segments": pad(segments, PADDING),
        "prompt_lens": torch.tensor(prompt_lens, dtype=torch.long),
    }
