"""The group log: every step's groups as JSON lines, for reading, plotting and checking."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openrlhf_gpm.core import Groups, mean_scores, win_rates
from openrlhf_gpm.files import replacing
from openrlhf_gpm.trainer.policy.rows import unpack_rows


def write_groups(
    directory: str,
    step: int,
    prompts: list[Any],
    responses: list[str],
    rows: Tensor,
    groups: Groups,
    given: Mapping[str, Tensor],
) -> None:
    """Write DIRECTORY/step_NNNNNN.jsonl, one group per line, whole or not at all.

    rows: what the reward model returned, (G, K, 3k + FACTS) or (G, K). Keys: `prompt`, `responses` (K), of a GPM
    `embeddings` (K, 2k), `gate_over_tau` (K, k), `reward_truncated` and `control_text` (K), of a Bradley-Terry model
    `rewards` (K), `mean_scores` and `win_rates` against the rest of the group, `opponent_scores` where the opponent is
    another, `drift_NAME` (K) of each frozen policy, in nats, and under its name (`target`) what the objective prepared
    for each response.
    """
    K = groups.scores.shape[-1]
    columns: dict[str, list[Any]] = {
        "prompt": prompts[::K],
        "responses": [responses[i : i + K] for i in range(0, len(responses), K)],
        "mean_scores": mean_scores(groups.scores).tolist(),
        "win_rates": win_rates(groups.scores).tolist(),
    }
    if groups.against is not None:
        columns["opponent_scores"] = groups.mean_score().tolist()
    if rows.dim() == 2:
        columns["rewards"] = rows.tolist()
    else:
        parts = unpack_rows(rows)
        columns |= {"embeddings": parts.embeddings.tolist(), "gate_over_tau": parts.gate_over_tau.tolist()}
        columns["reward_truncated"] = parts.truncated.bool().tolist()
        columns["control_text"] = parts.escaped.bool().tolist()
    columns |= {f"drift_{name}": values.tolist() for name, values in groups.drift.items()}
    columns |= {name: values.tolist() for name, values in given.items()}

    path = Path(directory) / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as (file,):
        for row in zip(*columns.values(), strict=True):
            file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
