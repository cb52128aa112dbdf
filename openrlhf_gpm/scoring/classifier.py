"""A GPM in the layout of a plain classifier, asked text by text: what is sent, and what comes back.

The classifier's head is [2k, H], or [3k, H] with the gate's rows last, on the last token of each text. A group is K
texts, plus the prompt alone for the gate. Normalisation, gate and scores are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf_gpm.checkpoints.checkpoint import Checkpoint
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import finish_embedding, scale_gate
from openrlhf_gpm.samples.forest import gate_sample
from openrlhf_gpm.samples.formatting import Encoded


@dataclass(frozen=True)
class Texts:
    """Token ids of all texts of some groups, and which of them are what."""

    ids: list[list[int]]

    prompts: list[int]
    """Indices of the prompts that the gates are read from, one per group; empty without a gate."""

    samples: list[int]
    """Indices of the samples."""


def texts_of(groups: Sequence[Sequence[Encoded]], config: GPMConfig) -> Texts:
    """What to send for these groups. A prompt goes before its samples, which then find it in a prefix cache."""
    texts = Texts([], [], [])
    for group in groups:
        if config.gated:
            reader = group[gate_sample(group)]
            texts.prompts.append(len(texts.ids))
            texts.ids.append(reader.input_ids[: reader.prompt_len])
        texts.samples.extend(range(len(texts.ids), len(texts.ids) + len(group)))
        texts.ids.extend(sample.input_ids for sample in group)
    return texts


def read_rows(rows: Tensor, texts: Texts, groups: int, config: GPMConfig, hidden_size: int) -> tuple[Tensor, Tensor]:
    """(texts, 2k or 3k), what the classifier says of each text -> what `Backend.embed_groups` returns."""
    head = config.head_rows
    v = finish_embedding(rows[texts.samples, :head], config)
    if not config.gated:
        return v, torch.ones(groups, config.k)
    return v, scale_gate(rows[texts.prompts, head:], config.gate, hidden_size)


def check_layout(checkpoint: Checkpoint, backend: str) -> None:
    """Raise ValueError unless the checkpoint is a classifier."""
    if checkpoint.gpm.pool != "last":
        raise ValueError(
            f"--backend {backend}: {checkpoint.path} reads the mean over a response's tokens (gpm.pool), vLLM the "
            "last token: use --backend torch"
        )
    if checkpoint.gpm.layout != "classifier":
        raise ValueError(
            f"--backend {backend}: {checkpoint.path} is a GPM in its own layout: use `openrlhf-gpm convert --from gpm "
            "--to classifier` first, or --backend torch"
        )


def check_length(texts: Texts, longest: int) -> None:
    """Raise ValueError for a text of more tokens than vLLM takes."""
    length = max(map(len, texts.ids))
    if length > longest:
        raise ValueError(
            f"a sample of {length} tokens is longer than the {longest} that vLLM takes for this model "
            "(max_position_embeddings): leave it out, or use --backend torch"
        )
