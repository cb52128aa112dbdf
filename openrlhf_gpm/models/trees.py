"""Groups as trees: the tokens that a group's samples share come once, and every sample branches off from them.

Causal attention makes the states of a sample's first tokens independent of what follows them, so every number is that
of encoding the samples one by one. All trees of a call lie in one row without padding: linear layers see each token
once. Attention (`models/attention.py`) takes the row apart into `Part`s.

Notation: G groups, B samples; S tokens of a prefix, W of a branch; N tokens in the row; R rows of a part. Places are
indices into the row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.models.batching import fullest_prompt, shared_length
from openrlhf_gpm.models.formatting import Encoded

MAX_SHARE = 0.9
"""Groups are read as trees where these have at most this share of the tokens of the padded samples."""

KEY_COST = 1 / 8
"""Memory of a key in attention over that of a token in the linear layers, roughly."""

MIN_WIDTH = 16
"""Rows up to this long share a call of attention, however short others are."""


@dataclass(frozen=True)
class Part:
    """Prefixes, or branches of like length: what one call of attention reads."""

    queries: Tensor
    """(R, W) places of a row's own tokens, padded right with place 0."""

    keys: Tensor
    """(R, S + W) places of what they may look at: the prefix before them, then themselves."""

    mask: Tensor | None
    """(R, 1, W, S + W) bool, True where a query sees a key; None where nothing is before a row: causal."""

    def to(self, device: torch.device | str) -> "Part":
        mask = None if self.mask is None else self.mask.to(device)
        return Part(self.queries.to(device), self.keys.to(device), mask)


@dataclass(frozen=True)
class Forest:
    """How the tokens of a row hang together, and where to look in what the trunk returns for it."""

    position_ids: Tensor
    """(1, N) of each token in its sample, from 0."""

    parts: tuple[Part, ...]

    back: Tensor
    """(N,) where each token is among the queries of all parts, one row after the other."""

    last: Tensor
    """(B,) places of the samples' last tokens."""

    gate: Tensor
    """(G,) places of the prompts' last tokens, each in the group's `fullest_prompt`."""

    def to(self, device: torch.device | str) -> "Forest":
        """As a tensor's: the same on another device."""
        parts = tuple(part.to(device) for part in self.parts)
        position_ids, back, last, gate = (x.to(device) for x in (self.position_ids, self.back, self.last, self.gate))
        return Forest(position_ids, parts, back, last, gate)


def collate_trees(groups: Sequence[Sequence[Encoded]]) -> dict[str, Any]:
    """What a GPM's forward takes: `input_ids` (1, N), all prefixes end to end, then all branches, and the `forest`."""
    samples = sample_places(groups)
    shared = [shared_length(group) for group in groups]
    start = list(accumulate(map(len, groups), initial=0))  # a group's first sample
    encoded = [e for group in groups for e in group]

    places = torch.cat(samples)
    input_ids, position_ids = torch.empty(2, int(places.max()) + 1, dtype=torch.long)
    input_ids[places] = torch.tensor([token for e in encoded for token in e.input_ids])
    position_ids[places] = torch.cat([torch.arange(len(sample)) for sample in samples])

    nothing = torch.empty(0, dtype=torch.long)
    prefixes = [(nothing, samples[i][:S]) for i, S in zip(start, shared, strict=False) if S]
    sizes = torch.tensor([len(group) for group in groups])
    of_sample = torch.tensor(shared).repeat_interleave(sizes).tolist()
    branches = [(sample[:S], sample[S:]) for sample, S in zip(samples, of_sample, strict=True)]
    parts, back = _parts(prefixes, branches, tokens=len(position_ids))

    fullest = [i + fullest_prompt(group) for i, group in zip(start, groups, strict=False)]
    forest = Forest(
        position_ids[None],
        parts,
        back,
        last=torch.stack([sample[-1] for sample in samples]),
        gate=torch.stack([samples[i][encoded[i].prompt_len - 1] for i in fullest]),
    )
    return {"input_ids": input_ids[None], "forest": forest}


def sample_places(groups: Sequence[Sequence[Encoded]]) -> list[Tensor]:
    """Where the tokens of each sample are in the row of `collate_trees`: B tensors, as long as the samples."""
    shared = [shared_length(group) for group in groups]
    branch = [len(e.input_ids) - S for group, S in zip(groups, shared, strict=True) for e in group]
    prefix_at = list(accumulate(shared, initial=0))
    branch_at = list(accumulate(branch, initial=prefix_at[-1]))
    of_group = [g for g, group in enumerate(groups) for _ in group]
    return [
        torch.cat([torch.arange(prefix_at[g], prefix_at[g + 1]), torch.arange(branch_at[i], branch_at[i + 1])])
        for i, g in enumerate(of_group)
    ]


def tree_pays(groups: Sequence[Sequence[Encoded]]) -> bool:
    """Whether a batch of these groups has enough fewer tokens as trees than in full, padding included."""
    lengths = [len(e.input_ids) for group in groups for e in group]
    tokens = sum(lengths) - sum((len(group) - 1) * shared_length(group) for group in groups)
    return tokens <= MAX_SHARE * len(lengths) * max(lengths)


def tree_batches(groups: Sequence[Sequence[Encoded]], batch_tokens: int) -> Iterator[list[tuple[int, range]]]:
    """Batches of (group, which of its samples), prefixes of like length together, longest first.

    A batch takes the memory of at most batch_tokens tokens, a key that attention reads counted as `KEY_COST` of one. A
    group that takes more is split, and its prefix read again; what is too long alone makes its own batch.
    """
    batch: list[tuple[int, range]] = []
    used = 0.0
    shared = [shared_length(group) for group in groups]
    for g in sorted(range(len(groups)), key=lambda g: -shared[g]):
        S, longest = shared[g], max(len(e.input_ids) for e in groups[g])
        each = longest - S + longest * KEY_COST
        size = max(1, min(len(groups[g]), int((batch_tokens - S) / each)))
        for first in range(0, len(groups[g]), size):
            samples = range(first, min(first + size, len(groups[g])))
            cost = S + each * len(samples)
            if batch and used + cost > batch_tokens:
                yield batch
                batch, used = [], 0.0
            batch.append((g, samples))
            used += cost
    if batch:
        yield batch


Rows = list[tuple[Tensor, Tensor]]  # places before, own places


def _parts(*kinds: Rows, tokens: int) -> tuple[tuple[Part, ...], Tensor]:
    """The parts of rows of each kind, and `Forest.back`."""
    parts, back, queries = [], torch.empty(tokens, dtype=torch.long), 0
    for rows in kinds:
        for bucket in _like_lengths([len(own) for _, own in rows]):
            before, sees_before = _pad([rows[i][0] for i in bucket])  # (R, S)
            own, is_own = _pad([rows[i][1] for i in bucket])  # (R, W)
            W = own.shape[1]
            mask = None
            if before.shape[1]:
                causal = torch.ones(W, W, dtype=torch.bool).tril()
                mask = torch.cat([sees_before[:, None].expand(-1, W, -1), causal.expand(len(own), W, W)], -1)[:, None]
            back[own[is_own]] = queries + is_own.flatten().nonzero().squeeze(-1)
            queries += own.numel()
            parts.append(Part(own, torch.cat([before, own], 1), mask))
    return tuple(parts), back


def _like_lengths(lengths: list[int]) -> Iterator[list[int]]:
    """Buckets of rows, longest first, so that padding stays below a row's own length, or below `MIN_WIDTH` tokens."""
    bucket: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if bucket and 2 * max(lengths[i], MIN_WIDTH) <= lengths[bucket[0]]:
            yield bucket
            bucket = []
        bucket.append(i)
    if bucket:
        yield bucket


def _pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(R, longest) rows padded right with 0, and True where they are not."""
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
