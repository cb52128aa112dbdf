"""Groups as trees: the tokens that a group's samples share come once, and every sample branches off from them.

Causal attention makes the states of a sample's first tokens independent of what follows them, so every number is that
of encoding the samples one by one. All trees of a call lie in one row without padding: linear layers see each token
once. Attention (`models/attention.py`) takes the row apart into `Part`s.

Notation: G groups, B samples; S tokens of a prefix, W of a branch; N tokens in the row; R rows of a part. Places are
indices into the row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
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

    rows: int
    """R"""

    width: int
    """W, the longest row's own tokens."""

    seen: int
    """S + W, the longest prefix before the rows and the rows themselves: keys."""

    mask: Tensor | None
    """(R, 1, W, S + W) bool, True where a query sees a key; None where nothing is before a row: causal."""

    def to(self, device: torch.device | str) -> "Part":
        return self if self.mask is None else replace(self, mask=self.mask.to(device))


@dataclass(frozen=True)
class Forest:
    """How the tokens of a row hang together, and where to look in what the trunk returns for it."""

    position_ids: Tensor
    """(1, N) of each token in its sample, from 0."""

    parts: tuple[Part, ...]

    queries: Tensor
    """(sum of R W,) places of the rows' tokens, part after part; each row padded right with place 0."""

    keys: Tensor
    """(sum of R (S + W),) places of the tokens before a row and of its own, each padded right with place 0."""

    back: Tensor
    """(N,) where each token is among the queries."""

    last: Tensor
    """(B,) places of the samples' last tokens."""

    gate: Tensor
    """(G,) places of the prompts' last tokens, each in the group's `fullest_prompt`."""

    def to(self, device: torch.device | str) -> "Forest":
        """As a tensor's: the same on another device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "parts"}
        return replace(self, parts=tuple(part.to(device) for part in self.parts), **tensors)


def collate_trees(groups: Sequence[Sequence[Encoded]]) -> dict[str, Any]:
    """What a GPM's forward takes: `input_ids` (1, N), all prefixes end to end, then all branches, and the `forest`."""
    encoded = [e for group in groups for e in group]
    start = list(accumulate(map(len, groups), initial=0))[:-1]  # a group's first sample
    branches = sample_places(groups)
    samples = [torch.cat(branch) for branch in branches]

    places = torch.cat(samples)
    input_ids, position_ids = torch.empty(2, int(places.max()) + 1, dtype=torch.long)
    input_ids[places] = torch.tensor([token for e in encoded for token in e.input_ids])
    position_ids[places] = torch.cat([torch.arange(len(sample)) for sample in samples])

    prefixes = [(torch.empty(0, dtype=torch.long), branches[i][0]) for i in start if len(branches[i][0])]
    pieces = [*_parts(prefixes), *_parts(branches)]
    queries, is_query, keys = (torch.cat(x) for x in zip(*(of_part for _, of_part in pieces), strict=True))
    back = torch.empty_like(position_ids)
    back[queries[is_query]] = is_query.nonzero().squeeze(-1)

    fullest = [i + fullest_prompt(group) for i, group in zip(start, groups, strict=True)]
    forest = Forest(
        position_ids[None],
        tuple(part for part, _ in pieces),
        queries,
        keys,
        back,
        last=torch.stack([sample[-1] for sample in samples]),
        gate=torch.stack([samples[i][encoded[i].prompt_len - 1] for i in fullest]),
    )
    return {"input_ids": input_ids[None], "forest": forest}


def sample_places(groups: Sequence[Sequence[Encoded]]) -> list[tuple[Tensor, Tensor]]:
    """Where the tokens of each sample are in the row of `collate_trees`: B pairs of those it shares and its own."""
    shared = [shared_length(group) for group in groups]
    own = [len(e.input_ids) - S for group, S in zip(groups, shared, strict=True) for e in group]
    places = torch.arange(sum(shared) + sum(own)).split([*shared, *own])
    prefixes = [prefix for prefix, group in zip(places, groups, strict=False) for _ in group]
    return list(zip(prefixes, places[len(groups) :], strict=True))


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


def _parts(rows: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Part, tuple[Tensor, Tensor, Tensor]]]:
    """Parts of rows, given as places before them and places of their own.

    With each part: places of its queries, (R W,), True where these are not padding, and places of its keys.
    """
    for bucket in _like_lengths([len(own) for _, own in rows]):
        before, sees_before = _pad([rows[i][0] for i in bucket])  # (R, S)
        own, is_own = _pad([rows[i][1] for i in bucket])  # (R, W)
        R, W = own.shape
        mask = None
        if before.shape[1]:
            causal = torch.ones(W, W, dtype=torch.bool).tril()
            mask = torch.cat([sees_before[:, None].expand(R, W, -1), causal.expand(R, W, W)], -1)[:, None]
        keys = torch.cat([before, own], 1).flatten()
        yield Part(R, W, before.shape[1] + W, mask), (own.flatten(), is_own.flatten(), keys)


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
