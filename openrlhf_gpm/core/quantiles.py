"""Quantiles for logs and reports."""

import torch
from torch import Tensor

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def quantiles(name: str, values: Tensor) -> dict[str, float]:
    """(N,) -> {"NAME_q05": ..., "NAME_q95": ...}; nothing for no values."""
    if values.numel() == 0:
        return {}
    exact = values.double()  # torch.quantile takes at most 16 million values; a rollout batch has thousands
    found = torch.quantile(exact, exact.new_tensor(LEVELS)).tolist()
    return {f"{name}_q{round(100 * level):02d}": value for level, value in zip(LEVELS, found, strict=True)}
