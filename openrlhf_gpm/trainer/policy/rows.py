"""What the reward actor returns for a response: one row with all that scores need, and what the log counts."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_rows(embedding: Tensor, gate: Tensor, tau: float, truncated: Tensor) -> Tensor:
    """(B, 2k), (B, k), (B,) bool -> (B, 3k + 1): embedding, gate / tau, and 1 where the GPM read a cut response."""
    return torch.cat([embedding, gate / tau, truncated.to(embedding.dtype).unsqueeze(-1)], dim=-1)


def unpack_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3k + 1) -> embeddings (..., 2k), gate / tau (..., k) and truncated (...), 0 or 1."""
    k = rows.shape[-1] // 3
    return rows[..., : 2 * k], rows[..., 2 * k : 3 * k], rows[..., 3 * k]
