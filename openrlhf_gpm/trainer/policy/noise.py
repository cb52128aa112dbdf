"""The noise floor: how far `moved` is from 0 before a policy has moved.

log pi_t and log pi_theta come from forward passes of other shapes, in bf16 by other kernels, and their differences add
up over the tokens of a response. Until a step's first update both policies are the same, so whatever `moved` is in the
first optimizer window is rounding. An objective that regresses `moved` on targets of that size learns the rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.utils.logging_utils import init_logger
from torch import Tensor

logger = init_logger(__name__)

SHARE = 0.1
"""Of the targets: above it the noise is warned about."""


class NoiseFloor:
    """Collects `moved` and the targets of a step's first optimizer window, on every rank."""

    def __init__(self, remedy: str) -> None:
        self.remedy, self.warned = remedy, False
        self.start()

    def start(self) -> None:
        """Forget the step before."""
        self.moved: list[Tensor] = []
        self.targets: list[Tensor] = []

    def add(self, moved: Tensor, target: Tensor | None, trained: Tensor) -> None:
        """Responses of a micro-batch of the first window: (B,) each; trained: those that are not inert."""
        self.moved.append(moved.detach()[trained].abs().float().cpu())
        if target is not None:
            self.targets.append(target.detach()[trained].abs().float().cpu())

    def status(self) -> dict[str, float]:
        """{"noise": rms of `moved` in nats, over all ranks}; every rank must call it. Warns once in a run."""
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, (_joined(self.moved), _joined(self.targets)))
        noise, size = (_rms(torch.cat(parts)) for parts in zip(*gathered, strict=True))
        if noise > SHARE * size > 0 and not self.warned and torch.distributed.get_rank() == 0:
            self.warned = True
            logger.warning(
                f"noise is {noise:.3g} nats per response before any update, and the targets are {size:.3g}: rounding "
                f"is a part of what is learned. {self.remedy}"
            )
        return {"noise": noise}


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0)


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item() if values.numel() else 0.0
