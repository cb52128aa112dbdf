"""A forest: groups as prefix trees. The tokens that a group's samples share come once; the samples branch off there.

With causal attention the states of a sample's first tokens do not depend on what follows, so the numbers are those of
encoding the samples one by one. All trees of a call form one row without padding: linear layers see each token once.
Attention splits the row, into `Part`s (`models/attention/sdpa.py`) or `Runs` (`models/attention/flash.py`).

Notation: G groups, B samples; S tokens of a prefix, W of a branch; N tokens in the row; R rows of a part. Places are
indices into the row.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.samples.formatting import Encoded
from openrlhf_gpm.samples.runs import Runs, forest_runs

MAX_SHARE = 0.95
"""Use a forest only where it has at most this share of the tokens of encoding every sample in full."""

KEY_COST = 1 / 8
"""Rough memory of one key in attention, relative to one token in the linear layers."""

MIN_WIDTH = 31
"""Rows of up to this many tokens share one call of attention, whatever their length."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one call of attention reads: prefixes, or branches of similar length after prefixes of similar length."""

    rows: int
    """R"""

    width: int
    """W, the longest row's own tokens."""

    seen: int
    """S + W: keys per row, S being the longest prefix before these rows."""

    prefix_lens: Tensor | None
    """(R,) tokens before each row; None for prefixes, which have nothing before them."""

    _masks: dict[tuple[int, torch.dtype], Tensor] = field(init=False, repr=False, default_factory=dict)

    def mask(self, copies: int, dtype: torch.dtype) -> Tensor:
        """Which keys each query sees: (R, 1, copies W, S + W), the queries repeated `copies` times; not for prefixes.

        True where it sees the key; for a float dtype 0 there and -inf elsewhere. Built on the device when attention
        first asks and then kept: sent along with a batch, it would be the largest tensor in it.
        """
        if (copies, dtype) not in self._masks:
            assert self.prefix_lens is not None
            R, W, S, device = self.rows, self.width, self.seen - self.width, self.prefix_lens.device
            before = torch.arange(S, device=device) < self.prefix_lens[:, None]
            own = torch.ones(W, W, dtype=torch.bool, device=device).tril()
            sees = torch.cat([before[:, None].expand(R, W, S), own.expand(R, W, W)], -1)
            sees = sees[:, None].repeat(1, 1, copies, 1)
            if dtype != torch.bool:
                sees = torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, -torch.inf)
            self._masks[copies, dtype] = sees
        return self._masks[copies, dtype]

    def to(self, device: torch.device | str) -> "Part":
        return self if self.prefix_lens is None else replace(self, prefix_lens=self.prefix_lens.to(device))


@dataclass(frozen=True, eq=False)
class Forest:
    """Which tokens of a row belong together, and where to look in what the trunk returns for it."""

    parts: tuple[Part, ...]

    own: Runs
    """Every prefix and every branch, which looks at itself."""

    before: Runs | None
    """The branches of each group that has a prefix, which they look at too; None where none has."""

    shared: int
    """Tokens of all prefixes, which come first in the row."""

    longest: int
    """Tokens of the longest sample."""

    position_ids: Tensor
    """(1, N) position of each token in its sample, from 0."""

    queries: Tensor
    """(sum of R W,) places of each row's own tokens, part after part; rows are padded right with place 0."""

    keys: Tensor
    """(sum of R (S + W),) places of the tokens before a row, then of its own, each padded right with its own first."""

    back: Tensor
    """(N,) index of each token among the queries."""

    last_at: Tensor
    """(B,) places of the samples' last tokens."""

    response_at: Tensor
    """(R,) places of the responses' tokens, sample after sample; tokens that responses share come once for each."""

    response_lens: Tensor
    """(B,) how many of them are each sample's."""

    gate_at: Tensor
    """(G,) places of the prompts' last tokens, each in the group's `gate_sample`."""

    def to(self, device: torch.device | str) -> "Forest":
        """The same forest on another device, as `Tensor.to`."""
        parts = tuple(part.to(device) for part in self.parts)
        before = self.before and self.before.to(device)
        tensors: dict[str, Any] = {
            f.name: x.to(device) for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)
        }
        return replace(self, parts=parts, own=self.own.to(device), before=before, **tensors)


def gate_sample(group: Sequence[Encoded]) -> int:
    """Index of the sample whose gate is the group's: the first that kept the prompt's last token.

    In the others the tokenizer merged that token with the response.
    """
    return max(range(len(group)), key=lambda i: group[i].prompt_len)


def shared_length(group: Sequence[Encoded]) -> int:
    """S: the number of tokens that all samples of a group begin with, at most all but the shortest's last one.

    Tokens are compared, not text: a response may merge with the prompt's last token, and responses may begin with the
    same tokens.
    """
    samples = [e.input_ids for e in group]
    low, high = min(samples), max(samples)  # in alphabetical order, all others lie between
    limit = min(map(len, samples)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def collate_forest(groups: Sequence[Sequence[Encoded]]) -> dict[str, Any]:
    """Arguments of a GPM's forward: `input_ids` (1, N), all prefixes end to end, then all branches; and the `forest`.

    Two samples "a b c d" and "a b e" of one group become the row "a b c d e", of which attention reads two parts:
    the prefix "a b", and the branches "c d" and "e", each of which also sees "a b".
    """
    encoded = [e for group in groups for e in group]
    first = list(accumulate(map(len, groups), initial=0))[:-1]  # a group's first sample
    places = sample_places(groups)
    samples = [torch.cat(pair) for pair in places]

    where = torch.cat(samples)
    input_ids, position_ids = torch.empty(2, int(where.max()) + 1, dtype=torch.long)
    input_ids[where] = torch.tensor([token for e in encoded for token in e.input_ids])
    position_ids[where] = torch.cat([torch.arange(len(sample)) for sample in samples])

    nothing = torch.empty(0, dtype=torch.long)
    prefixes = [(nothing, places[i][0]) for i in first if len(places[i][0])]
    parts, *of_parts = zip(*_cut(prefixes), *_cut(places), strict=True)
    queries, is_query, keys = map(torch.cat, of_parts)
    back = torch.empty_like(position_ids)
    back[queries[is_query]] = is_query.nonzero().squeeze(-1)

    order = _row_order([len(places[i][0]) for i in first])
    shared = [len(places[first[g]][0]) for g in order]
    branches = [[len(e.input_ids) - S for e in groups[g]] for g, S in zip(order, shared, strict=True)]
    own, before = forest_runs(shared, branches)

    readers = [i + gate_sample(group) for i, group in zip(first, groups, strict=True)]
    forest = Forest(
        parts=parts,
        own=own,
        before=before,
        shared=sum(shared),
        longest=max(map(len, samples)),
        position_ids=position_ids[None],
        queries=queries,
        keys=keys,
        back=back,
        last_at=torch.stack([sample[-1] for sample in samples]),
        response_at=torch.cat([sample[e.prompt_len :] for sample, e in zip(samples, encoded, strict=True)]),
        response_lens=torch.tensor([len(e.input_ids) - e.prompt_len for e in encoded]),
        gate_at=torch.stack([samples[i][encoded[i].prompt_len - 1] for i in readers]),
    )
    return {"input_ids": input_ids[None], "forest": forest}


def sample_places(groups: Sequence[Sequence[Encoded]]) -> list[tuple[Tensor, Tensor]]:
    """Places of each sample's tokens in the row of `collate_forest`: B pairs (those it shares, its own)."""
    shared = [shared_length(group) for group in groups]
    order = _row_order(shared)
    lengths = [shared[g] for g in order] + [len(e.input_ids) - shared[g] for g in order for e in groups[g]]
    places = iter(torch.arange(sum(lengths)).split(lengths))
    prefixes = {g: next(places) for g in order}
    branches = {g: [next(places) for _ in groups[g]] for g in order}
    return [(prefixes[g], branch) for g in range(len(groups)) for branch in branches[g]]


def token_counts(groups: Sequence[Sequence[Encoded]]) -> tuple[int, int]:
    """Tokens of all samples, and of their forest; without padding."""
    full = sum(len(sample.input_ids) for group in groups for sample in group)
    return full, full - sum((len(group) - 1) * shared_length(group) for group in groups)


def forest_pays(groups: Sequence[Sequence[Encoded]], by_length: bool = False) -> bool:
    """Whether a forest of these groups, none empty, saves enough tokens (`MAX_SHARE`).

    It is compared with one padded batch of all samples; by_length: with batches of samples of similar length, which
    have next to no padding.
    """
    full, forest = token_counts(groups)
    if not by_length:
        full = sum(map(len, groups)) * max(len(sample.input_ids) for group in groups for sample in group)
    return forest <= MAX_SHARE * full


def forest_batches(groups: Sequence[Sequence[Encoded]], batch_tokens: int) -> Iterator[list[tuple[int, range]]]:
    """Yields batches of (group, which of its samples), prefixes of similar length together, longest first.

    A batch takes the memory of at most batch_tokens tokens, where a key that attention reads counts `KEY_COST`. A
    larger group is split, and each part reads the prefix; a sample that is too long by itself is its own batch.
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


def _row_order(shared: Sequence[int]) -> list[int]:
    """Groups in the order of the row: without a prefix last, so that the branches that see one are neighbours."""
    return sorted(range(len(shared)), key=lambda g: shared[g] == 0)


def _cut(rows: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Part, Tensor, Tensor, Tensor]]:
    """Sorts rows, each given as (places before it, its own places), into parts.

    Yields a part, the places of its queries (R W,), True where these are not padding, and the places of its keys.
    Lengths within a part differ by less than a factor of two, or are at most `MIN_WIDTH`, which bounds the padding.
    """
    similar: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (before, own) in enumerate(rows):
        similar[_magnitude(len(own)), _magnitude(len(before))].append(i)
    for _, members in sorted(similar.items(), reverse=True):
        before, is_before = _pad([rows[i][0] for i in members])  # (R, S)
        own, is_own = _pad([rows[i][1] for i in members])  # (R, W)
        # Padding repeats the row's own token: a masked key that is NaN would make the whole row NaN.
        keys = torch.where(torch.cat([is_before, is_own], 1), torch.cat([before, own], 1), own[:, :1])
        part = Part(len(own), own.shape[1], keys.shape[1], is_before.sum(1) if before.shape[1] else None)
        yield part, own.flatten(), is_own.flatten(), keys.flatten()


def _magnitude(length: int) -> int:
    return max(length, MIN_WIDTH).bit_length()


def _pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows padded right with 0, (R, longest), and True where they are not padding."""
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
