"""From groups of samples to what a GPM's forward takes: how they are split into batches, and how a batch is laid out.

A batch is padded, one row per sample, or a forest, which holds what the samples of a group share once
(`samples/forest.py`). Training, the Ray reward actor and scoring all go through `collate_groups`.

Notation: G groups; B samples, T tokens of the longest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.samples.encoded import first_of_equals
from openrlhf_gpm.samples.forest import collate_forest, forest_batches, forest_pays, gate_sample
from openrlhf_gpm.samples.formatting import Encoded, Formatter

Groups = Sequence[Sequence[Encoded]]
Parts = list[tuple[int, Sequence[int]]]
"""What a batch holds of many groups: (group, which of its samples)."""


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """G groups for one model call, and where their numbers are in what it returns."""

    inputs: dict[str, Any]
    """Keyword arguments of a GPM's forward."""

    starts: Tensor
    """(G,) row of the embedding of each group's first sample; those of its other samples follow."""

    gate_at: Tensor
    """(G,) row of each group's gate."""


def collate_groups(groups: Groups, pad_token_id: int, share: bool) -> GroupBatch:
    """One batch of all groups: a forest where `share` allows it and it saves tokens, else padded.

    No group may be empty. share: the trunk reads forests (`models/trunks.py`) and the user did not switch them off.
    """
    starts = torch.tensor(list(accumulate(map(len, groups), initial=0))[:-1])
    if share and forest_pays(groups):
        return GroupBatch(collate_forest(groups), starts, torch.arange(len(groups)))
    samples = [sample for group in groups for sample in group]
    gate_at = starts + torch.tensor([gate_sample(group) for group in groups])
    return GroupBatch(dict(collate(samples, pad_token_id)), starts, gate_at)


def plan_batches(
    groups: Groups, batch_tokens: int, share: bool, longest: int | None = None
) -> Iterator[tuple[Parts, bool]]:
    """Batches of about batch_tokens tokens that together hold every sample once -> parts, and whether to share.

    Groups for which a forest pays share batches with their like; the samples of all others are sorted by length.

    Args:
        batch_tokens: per batch, padding included; a sample that is longer makes a batch of its own.
        share: as in `collate_groups`.
        longest: groups with a longer sample, in tokens, are not shared (a sliding window); None: any.
    """

    def shared(group: Sequence[Encoded]) -> bool:
        if not share or len(group) < 2:
            return False
        if longest is not None and max(len(sample.input_ids) for sample in group) > longest:
            return False
        return forest_pays([group], by_length=True)

    forest = [g for g, group in enumerate(groups) if shared(group)]
    for parts in forest_batches([groups[g] for g in forest], batch_tokens):
        yield [(forest[n], which) for n, which in parts], True
    rest = [(g, i) for g in sorted(set(range(len(groups))) - set(forest)) for i in range(len(groups[g]))]
    for batch in length_batches([len(groups[g][i].input_ids) for g, i in rest], batch_tokens):
        yield [(rest[n][0], [rest[n][1]]) for n in batch], False


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Split sample indices into batches of similar length, longest first (memory runs out at once or never).

    A batch's padded size, its number of samples times its longest, stays within batch_tokens; a sample that alone is
    longer makes its own batch.
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches


def collate(encoded: Sequence[Encoded], pad_token_id: int, side: str = "left") -> dict[str, Tensor]:
    """Pad B samples to the longest, T: LongTensors input_ids (B, T), attention_mask (B, T), prompt_lens (B,)."""
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    rows = [torch.tensor(e.input_ids, dtype=torch.long) for e in encoded]

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    return {
        "input_ids": pad(rows, pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in rows], 0),
        "prompt_lens": torch.tensor([e.prompt_len for e in encoded], dtype=torch.long),
    }


def encode_all(formatter: Formatter, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Encoded]:
    """N (prompt, response) pairs as token ids. Raises ValueError for a pair that the formatter rejects."""
    return [sample for group in encode_groups(formatter, prompts, responses) for sample in group]


def encode_groups(formatter: Formatter, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[list[Encoded]]:
    """`encode_all`, neighbours with the same prompt put into one group."""
    if isinstance(prompts, str) or isinstance(responses, str):
        raise ValueError("prompts and responses must be lists, got one text: put it into a list")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses: give one prompt per response")
    runs = groupby(zip(prompts, responses, strict=True), key=itemgetter(0))
    return [formatter.encode_group(prompt, [response for _, response in run]) for prompt, run in runs]


def unique_groups(groups: Groups) -> tuple[list[list[Encoded]], Tensor]:
    """The groups with each sample's tokens once, and for each of the N samples its row among what is left, (N,).

    So equal samples of a group get the same embedding, to the last bit, and tie.
    """
    unique, rows, start = [], [], 0
    for group in groups:
        first = first_of_equals(group)
        kept = {i: start + n for n, i in enumerate(dict.fromkeys(first))}
        unique.append([group[i] for i in kept])
        rows += [kept[i] for i in first]
        start += len(kept)
    return unique, torch.tensor(rows, dtype=torch.long)
