"""What policies answered to prompts, as the judge's embeddings: all that a comparison of policies needs.

Shapes: A answers of one policy to one prompt, embeddings 2k wide.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.core import bt_scores, cyclic_share, embed_rewards, group_scores
from openrlhf_gpm.scoring.embeddings import key_of


@dataclass(frozen=True, eq=False)
class Judged:
    """One policy's answers to one prompt."""

    embeddings: Tensor
    """(A, 2k)."""

    gate_over_tau: Tensor
    """(k,): the gate of the prompt, divided by tau."""

    cyclic_share: float
    """Of the group that they were judged in."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A policy's answers, by prompt."""

    policy: str
    by_prompt: Mapping[str, Judged]
    """By `key_of` the prompt."""


def from_group_log(folder: Path, policy: str) -> Answers:
    """The answers in the files that --gpm.log_groups wrote; of a prompt that came twice, the later ones.

    Raises ValueError in one line for a folder without such files, or a file that is damaged.
    """
    files = sorted(folder.glob("step_*.jsonl"))
    if not files:
        raise ValueError(f"{folder} holds no group log (step_*.jsonl): run with --gpm.log_groups")
    found: dict[str, Judged] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                found[key_of(row["prompt"])] = _judged(row)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{file}:{number} is no line of a group log ({error}): delete the file") from error
    return Answers(policy, found)


def _judged(row: Mapping[str, Any]) -> Judged:
    if "rewards" in row:  # Bradley-Terry: an embedding in one plane
        rewards = torch.tensor(row["rewards"])
        return Judged(embed_rewards(rewards), torch.ones(1), float(cyclic_share(bt_scores(rewards))))
    embeddings, gate = torch.tensor(row["embeddings"]), torch.tensor(row["gate_over_tau"][0])
    return Judged(embeddings, gate, float(cyclic_share(group_scores(embeddings, gate))))
