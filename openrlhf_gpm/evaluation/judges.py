"""Preference models behind one small interface, so that a GPM and its peers are evaluated in the same way."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from openrlhf_gpm.data import Group, PreferenceGroup

if TYPE_CHECKING:
    from openrlhf_gpm.scoring.scorer import GPM

LENGTH = "length"
"""The name of `LongerWins` in `open_model`."""


class PreferenceModel(Protocol):
    """Any model that says which of two responses to a prompt is better, and by how much."""

    @property
    def name(self) -> str: ...

    def score_all(self, groups: Iterable[Group | PreferenceGroup]) -> Iterator[Tensor]:
        """For every group, in order, the log-odds that row beats column: (K, K), skew-symmetric, lazily.

        NaN where the model has no answer.
        """
        ...


class LongerWins:
    """The baseline to beat: the longer response (in characters) wins by log-odds of 1; equal lengths tie."""

    name = LENGTH

    def score_all(self, groups: Iterable[Group | PreferenceGroup]) -> Iterator[Tensor]:
        """(K, K) of -1, 0 and 1 for every group."""
        for group in groups:
            lengths = torch.tensor([float(len(response)) for response in group.responses])
            yield (lengths.unsqueeze(1) - lengths).sign()


class LongerScores(Sequence[NDArray[Any]]):
    """The scores of `LongerWins` for every group, made when they are asked for."""

    def __init__(self, groups: Sequence[PreferenceGroup]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        (scores,) = LongerWins().score_all([self.groups[index]])
        return scores.double().numpy()


class GPMModel:
    """A checkpoint that `GPM.from_pretrained` loads: embedding, reward or pairwise head."""

    def __init__(self, name: str, gpm: "GPM") -> None:
        self.name = name
        self.gpm = gpm

    def score_all(self, groups: Iterable[Group | PreferenceGroup]) -> Iterator[Tensor]:
        """See `PreferenceModel`; samples of similar length are batched together. Raises as `GPM.score_groups` does."""
        return (torch.tensor(result["scores"]) for result in self.gpm.score_groups(groups, finite="nan"))


def open_model(source: str | os.PathLike[str], name: str | None = None, **options: Any) -> PreferenceModel:
    """`LongerWins` for "length", otherwise the checkpoint in a directory; options go to `GPM.from_pretrained`.

    Write ./length for a directory of that name. Raises ValueError as `GPM.from_pretrained` does.
    """
    if source == LENGTH:
        return LongerWins()
    from openrlhf_gpm.scoring.scorer import GPM

    return GPMModel(name or Path(source).resolve().name, GPM.from_pretrained(source, **options))


def short_names(sources: Sequence[str], flag: str = "--model") -> list[str]:
    """A short name for each path, usable as a folder's name: its last part, or more parts if two would be equal.

    "length" stays unchanged. Raises ValueError, which names the flag, if a path is given twice.
    """
    paths = [(LENGTH,) if source == LENGTH else Path(source).resolve().parts[1:] for source in sources]
    for source, path in zip(sources, paths, strict=True):
        if paths.count(path) > 1:
            raise ValueError(f"{flag} {source} is given twice: give each once")
    names: list[str] = []
    for depth in range(1, max(map(len, paths), default=0) + 1):
        ends = ["_".join(path[-depth:]) for path in paths]
        names = [name if names.count(name) == 1 else end for name, end in zip(names or ends, ends, strict=True)]
    return [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)]
