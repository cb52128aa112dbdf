"""DeepSpeed's checkpoints, named only when every rank has written its part."""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync


class CommonCheckpoint(TorchCheckpointEngine):
    """DeepSpeed's writer of checkpoints, except that all ranks have written theirs before `latest` names the new one.

    DeepSpeed's rank 0 writes `latest` when its own files are complete. A run killed before the others' are would be
    left with a checkpoint that cannot be loaded, and with no name of the one before.
    """

    def __init__(self, given: TorchCheckpointEngine) -> None:
        super().__init__()
        self.zipfile_serialization = given.zipfile_serialization

    def commit(self, info: CheckpointCommitInfo) -> Any:
        """Called on every rank after its last file and before rank 0 writes `latest`."""
        torch_dist_barrier_and_cuda_sync()
        return super().commit(info)
