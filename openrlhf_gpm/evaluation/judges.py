"""Preference models behind one small interface, so that a GPM and its peers are evaluated and timed alike."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from openrlhf_gpm import core
from openrlhf_gpm.config import Prompt
from openrlhf_gpm.samples.formatting import pair_text

if TYPE_CHECKING:
    from openrlhf_gpm.scoring.scorer import GPM, GroupLike

LENGTH = "length"
"""The name by which `open_model` knows `LongerWins`."""


class PreferenceModel(Protocol):
    """Anything that says which of two responses to a prompt is better, and by how much."""

    @property
    def name(self) -> str: ...

    def scores(self, prompt: Prompt, responses: Sequence[str]) -> Tensor:
        """Log-odds that row beats column: (K, K), skew-symmetric; NaN where the model has no answer."""
        ...

    def score_all(self, groups: "Iterable[GroupLike]") -> Iterator[Tensor]:
        """`scores` of many groups, in their order; lazy, so that results can be kept as they come."""
        ...


class LongerWins:
    """The longer response is better, by log-odds of 1, and equal lengths (in characters) tie: the baseline to beat."""

    name = LENGTH

    def scores(self, prompt: Prompt, responses: Sequence[str]) -> Tensor:
        """(K, K) of -1, 0 and 1."""
        lengths = torch.tensor([float(len(response)) for response in responses])
        return (lengths.unsqueeze(1) - lengths).sign()

    def score_all(self, groups: "Iterable[GroupLike]") -> Iterator[Tensor]:
        """`scores` of every group."""
        return (self.scores(group.prompt, group.responses) for group in groups)


class GPMModel:
    """A checkpoint that `GPM.from_pretrained` loads: embedding, reward or pairwise head."""

    def __init__(self, name: str, gpm: "GPM") -> None:
        self.name = name
        self.gpm = gpm

    def scores(self, prompt: Prompt, responses: Sequence[str]) -> Tensor:
        """(K, K) log-odds; NaN between responses whose embeddings are not finite.

        Raises ValueError as `GPM.score` does for anything else.
        """
        try:
            return self.gpm.scores(prompt, responses)
        except ValueError:
            if not responses:
                raise
            scores = self._as_they_are(prompt, list(responses))
            if torch.isfinite(scores).all():
                raise
            return scores

    def score_all(self, groups: "Iterable[GroupLike]") -> Iterator[Tensor]:
        """`scores` of every group, samples of like length batched together."""
        rest = iter(groups)
        waiting: deque[GroupLike] = deque()

        def feed() -> "Iterator[GroupLike]":
            for group in rest:
                waiting.append(group)
                yield group

        failed = True
        while failed:
            failed = False
            results = self.gpm.score_groups(feed())
            while not failed:
                try:
                    result = next(results)
                except StopIteration:
                    return
                except ValueError:  # of a group among those waiting, most likely NaN: each by itself will tell
                    failed = True
                else:
                    waiting.popleft()
                    yield torch.tensor(result["scores"])
            while waiting:
                group = waiting.popleft()
                yield self.scores(group.prompt, group.responses)

    def _as_they_are(self, prompt: Prompt, responses: list[str]) -> Tensor:
        """The scores of a group, finite or not, every sample by itself."""
        config, size = self.gpm.config, len(responses)
        if config.head == "pairwise":
            texts = [pair_text(a, b) for i, a in enumerate(responses) for j, b in enumerate(responses) if i != j]
            rewards = torch.zeros(size, size)
            rewards[~torch.eye(size, dtype=torch.bool)] = self.gpm.embed([prompt] * len(texts), texts)[0][:, 0]
            return (rewards - rewards.mT) / config.tau
        v, gate = self.gpm.embed([prompt] * size, responses)
        usable = torch.isfinite(gate).all(-1).double().argmax()  # the gate is the prompt's: any row's will do
        return core.group_scores(v, gate[usable] if config.gated else None, config.tau)


def open_model(source: str | os.PathLike[str], name: str | None = None, **options: Any) -> PreferenceModel:
    """`LongerWins` for "length", else the checkpoint in a directory; options go to `GPM.from_pretrained`.

    A directory that is called length is written ./length. Raises ValueError as `GPM.from_pretrained` does.
    """
    if source == LENGTH:
        return LongerWins()
    from openrlhf_gpm.scoring.scorer import GPM

    return GPMModel(name or Path(source).resolve().name, GPM.from_pretrained(source, **options))


def short_names(sources: Sequence[str], flag: str = "--model") -> list[str]:
    """A short name for each path, also good as a folder's name: the end of the path, longer where two would be equal.

    "length" stays what it is. Raises ValueError, which names the flag, when a path is given twice.
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
