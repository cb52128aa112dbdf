"""What the reward actor returns for a response: one row that holds all that a score matrix needs."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_rows(embedding: Tensor, gate: Tensor, tau: float) -> Tensor:
    """(B, 2k), (B, k) -> (B, 3k): the embedding, then gate / tau."""
    return torch.cat([embedding, gate / tau], dim=-1)


def unpack_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 3k) -> embeddings (..., 2k) and gate / tau (..., k)."""
    k = rows.shape[-1] // 3
    return rows[..., : 2 * k], rows[..., 2 * k :]
