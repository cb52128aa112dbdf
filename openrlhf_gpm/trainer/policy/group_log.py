"""The group log: every step's groups as JSON lines, for reading, plotting and checking."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from openrlhf_gpm.core import mean_scores, win_rates

if TYPE_CHECKING:
    from openrlhf_gpm.trainer.policy.experience_maker import Groups


def write_groups(
    directory: str, step: int, prompts: list[Any], responses: list[str], groups: Groups, target: Tensor | None
) -> None:
    """Write DIRECTORY/step_NNNNNN.jsonl, one group a line, whole or not at all.

    Keys: `prompt`, `responses` (K), `embeddings` (K, 2k) and `gate_over_tau` (K, k) of a GPM or `rewards` (K) of a
    Bradley-Terry model, `mean_scores`, `win_rates`, and `targets` (K) in nats where the loss has them.
    """
    k = groups.scores.shape[-1]
    columns: dict[str, list[Any]] = {
        "prompt": prompts[::k],
        "responses": [responses[i : i + k] for i in range(0, len(responses), k)],
        "mean_scores": mean_scores(groups.scores).tolist(),
        "win_rates": win_rates(groups.scores).tolist(),
    }
    if groups.rows.dim() == 2:
        columns["rewards"] = groups.rows.tolist()
    else:
        dim = groups.rows.shape[-1] * 2 // 3
        columns["embeddings"] = groups.rows[..., :dim].tolist()
        columns["gate_over_tau"] = groups.rows[..., dim:].tolist()
    if target is not None:
        columns["targets"] = target.tolist()

    path = Path(directory) / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in zip(*columns.values(), strict=True):
            file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
    os.replace(temporary, path)
