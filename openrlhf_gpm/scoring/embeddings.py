"""Embeddings of answers on disk, one prompt per line, and by prompt in memory: the opponents that a judge remembers.

A line is {"prompt", "judge", "embeddings" [K][2k], "gate_over_tau" [k]} and maybe more. `judge` is the fingerprint of
the GPM: scores between embeddings of two judges mean nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.files import one_line
from openrlhf_gpm.fingerprint import fingerprint

LINES = 4096
"""Lines that become tensors at once: a call per line would take most of the time."""


@dataclass(frozen=True)
class Embedded:
    """Answers to n prompts, as a file holds them; 2k the size of an embedding."""

    keys: list[str]
    """Of the prompts, `key_of`."""

    embeddings: Tensor
    """(all answers, 2k), those of a prompt together."""

    sizes: list[int]
    """How many each prompt has."""

    gates_over_tau: Tensor
    """(n, k)."""


def judge_of(model: str | Path) -> str:
    """What names a judge: the fingerprint of its directory, or its name on the Hub."""
    return fingerprint(Path(model)) if Path(model).is_dir() else str(model)


def to_line(prompt: Prompt, embeddings: Any, gate_over_tau: Any, judge: str, **more: Any) -> str:
    """One line of a file, without its end. embeddings: [K][2k]; gate_over_tau: [k]; more: keys besides."""
    row = more | {"prompt": prompt, "judge": judge, "embeddings": embeddings, "gate_over_tau": gate_over_tau}
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def key_of(prompt: Prompt) -> str:
    """What a prompt is known by: its text, or the roles and texts of its messages."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[turn["role"], turn["content"]] for turn in prompt], ensure_ascii=False)


def read(path: Path, judge: str, flag: str) -> Iterator[Embedded]:
    """The file in parts of `LINES` lines.

    Raises ValueError, which names the flag, the file and the line, for what is not such a file, or another judge's.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            rows = (_parse(line, judge, f"{flag} {path}:{number}") for number, line in enumerate(lines, start=1))
            while part := list(islice(rows, LINES)):
                keys, embeddings, gates = zip(*part, strict=True)
                if len({len(gate) for gate in gates}) > 1:
                    raise ValueError(f"{flag} {path} mixes embeddings of several sizes: embed these answers again")
                try:
                    flat = torch.tensor(list(chain.from_iterable(embeddings)), dtype=torch.float32)
                    planes = torch.tensor(gates, dtype=torch.float32)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{flag} {path} holds embeddings that are no numbers: embed it again") from error
                yield Embedded(list(keys), flat, list(map(len, embeddings)), planes)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{flag} {path} cannot be read: {one_line(error)}") from error


def _parse(line: str, judge: str, place: str) -> tuple[str, list[list[float]], list[float]]:
    try:
        row = json.loads(line)
        key, by, embeddings, gate = key_of(row["prompt"]), row["judge"], row["embeddings"], row["gate_over_tau"]
        sizes = {len(embedding) for embedding in embeddings}
        planes = len(gate)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is no line of `openrlhf-gpm embed`: {one_line(error)}") from error
    if sizes != {2 * planes}:
        raise ValueError(f"{place}: embeddings of size {sorted(sizes)} do not fit a gate of {planes} planes")
    if by != judge:
        raise ValueError(
            f"{place} was embedded by another judge ({by:.12}) than --reward.model_name_or_path ({judge:.12}): embed "
            "these answers with `openrlhf-gpm embed --model` of that judge"
        )
    return key, embeddings, gate


class Answers:
    """Embeddings of other answers, with weights, by prompt."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {}  # embeddings (M, 2k) and weights (M,)

    def add(self, new: Embedded, weight: float = 1.0) -> None:
        """Add answers of one policy; `weight`, to each prompt, is shared equally between its answers there."""
        shares = _shares(new, weight)
        for key, part, share in zip(new.keys, new.embeddings.split(new.sizes), shares.split(new.sizes), strict=True):
            self.parts.setdefault(key, []).append((part, share))

    def of(self, keys: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """(G, M, 2k) and weights (G, M) that sum to 1, or to 0 for a prompt without answers; None if all are.

        M is the largest number of answers to one of the prompts; the others are filled up with weight 0.
        """
        found = [self._whole(key) for key in keys]
        width = next((part[0].shape[1] for part in found if part is not None), None)
        if width is None:
            return None
        whole = [part or (torch.zeros(0, width), torch.zeros(0)) for part in found]
        embeddings = pad_sequence([part for part, _ in whole], batch_first=True)
        weights = pad_sequence([weight for _, weight in whole], batch_first=True)
        return embeddings, weights / _or_one(weights.sum(-1, keepdim=True))

    def _whole(self, key: str) -> tuple[Tensor, Tensor] | None:
        parts = self.parts.get(key)
        if parts and len(parts) > 1:
            parts[:] = [(torch.cat([part for part, _ in parts]), torch.cat([weight for _, weight in parts]))]
        return parts[0] if parts else None

    @property
    def bytes(self) -> int:
        """Of the embeddings and weights."""
        return sum(t.numel() * t.element_size() for part in self.parts.values() for pair in part for t in pair)


class Means:
    """`Answers`, except that a prompt keeps one vector, the weighted mean: all that mean scores need."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.sums, self.weights = torch.zeros(0, 0), torch.zeros(0)  # (N, 2k), (N,)

    def add(self, new: Embedded, weight: float = 1.0) -> None:
        """As `Answers.add`."""
        rows = torch.tensor([self.rows.setdefault(key, len(self.rows)) for key in new.keys])
        sums, weights = self.sums, self.weights
        self.sums, self.weights = torch.zeros(len(self.rows), new.embeddings.shape[1]), torch.zeros(len(self.rows))
        if len(weights):
            self.sums[: len(sums)], self.weights[: len(weights)] = sums, weights
        shares = _shares(new, weight)
        of_answer = rows.repeat_interleave(torch.tensor(new.sizes))
        self.sums.index_add_(0, of_answer, shares.unsqueeze(-1) * new.embeddings)
        self.weights.index_add_(0, of_answer, shares)

    def of(self, keys: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """As `Answers.of`, with M = 1."""
        known = torch.tensor([key in self.rows for key in keys])
        if not bool(known.any()):
            return None
        rows = torch.tensor([self.rows.get(key, 0) for key in keys])
        weights = self.weights[rows] * known
        means = (self.sums[rows] / _or_one(weights).unsqueeze(-1)) * known.unsqueeze(-1)
        return means.unsqueeze(1), (weights > 0).float().unsqueeze(1)

    @property
    def bytes(self) -> int:
        """Of the embeddings and weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.sums, self.weights))


def _shares(new: Embedded, weight: float) -> Tensor:
    """The weight of each answer: (all answers,)."""
    sizes = torch.tensor(new.sizes)
    return (weight / sizes).repeat_interleave(sizes)


def _or_one(weights: Tensor) -> Tensor:
    return torch.where(weights > 0, weights, 1.0)
