"""Runs of neighbouring queries, each with the run of keys that it sees: what variable-length attention is called with.

A forest is two such calls (`models/attention/flash.py`). Their lengths are made once per batch, where it is collated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Runs:
    """R runs of queries, end to end, and as many runs of keys, end to end. None of them is empty."""

    queries: Tensor
    """(R + 1,) int32: where each run of queries begins, and where the last one ends."""

    keys: Tensor
    """(R + 1,) int32: the same of the keys."""

    tokens: int
    """Queries of all runs."""

    longest_queries: int
    """Queries of the longest run."""

    longest_keys: int
    """Keys of the longest run."""

    causal: bool
    """True: a query sees the keys of its run up to its own place in it; False: all of them."""

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], causal: bool) -> "Runs":
        """Runs of the given lengths, R of each."""
        return cls(_ends(queries), _ends(keys), sum(queries), max(queries), max(keys), causal)

    def to(self, device: torch.device | str) -> "Runs":
        """As a tensor's: the same on another device."""
        return replace(self, queries=self.queries.to(device), keys=self.keys.to(device))


def forest_runs(prefixes: Sequence[int], branches: Sequence[Sequence[int]]) -> tuple[Runs, Runs | None]:
    """The two calls that read a forest: every prefix and branch itself, and the branches of each group its prefix.

    The second call is None where no group has a prefix. It reads the branches right behind the last prefix.

    Args:
        prefixes: tokens of each group's prefix, in the order of the row; groups without one (0) come last.
        branches: tokens of each group's branches.
    """
    own = [length for group in branches for length in group]
    lengths = [*filter(None, prefixes), *own]
    own_runs = Runs.of(lengths, lengths, causal=True)
    with_prefix = [sum(group) for group, prefix in zip(branches, prefixes, strict=True) if prefix]
    return own_runs, Runs.of(with_prefix, list(filter(None, prefixes)), causal=False) if with_prefix else None


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)
