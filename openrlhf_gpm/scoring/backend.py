"""What a backend is: token ids of groups in, embeddings and gates out; and the device that it runs on."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.samples.formatting import Encoded


class Backend(Protocol):
    """What turns token ids into embeddings."""

    @property
    def config(self) -> GPMConfig: ...

    @property
    def batch_tokens(self) -> int: ...

    @property
    def share_prompt(self) -> bool:
        """Whether it computes once what the samples of a group begin with, where that saves tokens."""
        ...

    def embed_groups(self, groups: Sequence[Sequence[Encoded]]) -> tuple[Tensor, Tensor]:
        """G groups of N samples in all -> v (N, 2k) in order and one gate per group (G, k), fp32 on the CPU.

        A group may be empty. Its gate is that of its `gate_sample`; all ones without a gate.
        """
        ...


def pick_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; by default the GPU where there is one. Raises ValueError where torch finds none such."""
    gpus = torch.cuda.device_count()
    try:
        picked = torch.device(device or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {device} is not the name of a device: give cuda, cuda:1 or cpu") from error
    if picked.type not in ("cuda", "cpu"):
        raise ValueError(f"--device {device} is not supported: give cuda, cuda:1 or cpu")
    if picked.type == "cuda" and (picked.index or 0) >= gpus:
        raise ValueError(f"--device {device}: torch finds {gpus or 'no'} GPUs here; give another, or leave it out")
    return picked
