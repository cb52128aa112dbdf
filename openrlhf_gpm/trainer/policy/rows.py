"""What the reward actor returns for a response: one row with all that scores need, and what the log counts.

A group's rows may come from several micro-batches and ranks. So each says which tokens the GPM read, and the driver
gives equal tokens the same embedding, and a group one gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from openrlhf_gpm.samples.encoded import Encoded

FACTS = 5
"""Columns behind embedding and gate."""

HALF = 24
"""Bits of a whole number that fp32 holds exactly."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What the GPM says of responses, and what it read of them; fp32."""

    embeddings: Tensor
    """(..., 2k)"""

    gate_over_tau: Tensor
    """(..., k)"""

    truncated: Tensor
    """(...,) 1 where it read a response cut to fit its max_len."""

    escaped: Tensor
    """(...,) 1 where a response held control tokens of its tokenizer, which it read as text."""

    prompt_len: Tensor
    """(...,) tokens of the prompt."""

    digest: Tensor
    """(..., 2) the same for the same tokens, and with a probability of 1 - 2**-48 for these only."""


def pack_rows(embedding: Tensor, gate: Tensor, tau: float, samples: Sequence[Encoded]) -> Tensor:
    """(B, 2k), (B, k) of B samples -> (B, 3k + FACTS), which `unpack_rows` takes apart."""
    facts = [[s.truncated, s.escaped, s.prompt_len, *_digest(s)] for s in samples]
    return torch.cat([embedding, gate / tau, torch.tensor(facts, dtype=torch.float32)], dim=-1)


def unpack_rows(rows: Tensor) -> Rows:
    """(..., 3k + FACTS) -> its parts."""
    k = (rows.shape[-1] - FACTS) // 3
    v, gate, truncated, escaped, prompt_len, digest = rows.split([2 * k, k, 1, 1, 1, 2], dim=-1)
    return Rows(v, gate, truncated.squeeze(-1), escaped.squeeze(-1), prompt_len.squeeze(-1), digest)


def tie_equals(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(G, K, 3k + FACTS) -> the same with one gate per group and one embedding for equal tokens; and first (G, K).

    first: for each response, the first of its group with the same tokens. The gate is that of the response that kept
    most of the prompt: all of it, but in format 1.
    """
    parts = unpack_rows(rows)
    equal = (parts.digest.unsqueeze(2) == parts.digest.unsqueeze(1)).all(-1)  # (G, K, K)
    first = equal.int().argmax(-1)
    widest = parts.prompt_len.argmax(-1)
    embeddings = parts.embeddings.gather(1, first.unsqueeze(-1).expand_as(parts.embeddings))
    gate = parts.gate_over_tau[torch.arange(len(rows)), widest].unsqueeze(1).expand_as(parts.gate_over_tau)
    return torch.cat([embeddings, gate, rows[..., -FACTS:]], dim=-1), first


def _digest(sample: Encoded) -> tuple[int, int]:
    ids = torch.tensor(sample.input_ids, dtype=torch.int32).numpy().tobytes()
    number = int.from_bytes(blake2b(ids, digest_size=2 * HALF // 8).digest(), "big")
    return number >> HALF, number & ((1 << HALF) - 1)
