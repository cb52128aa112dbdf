"""The policy's Ray actor: a policy is saved when it was trained as planned, and whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import ray
from openrlhf.trainer.ray.ppo_actor import BasePolicyModelActor
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync

from openrlhf_gpm.files import replace_model


class BaseObjectivePolicyActor(BasePolicyModelActor):
    """The upstream policy actor, except for what it checks and does when the trained policy is saved."""

    def save_model(self) -> None:
        """Write the policy under a temporary name, then move it to --ckpt.output_dir.

        Raises RuntimeError, before anything is written, where DeepSpeed took fewer optimizer steps than the run had
        planned: such a policy must not pass for a trained one.
        """
        args, taken = self.strategy.args, self.actor.model.global_steps
        if taken < self.max_steps:
            raise RuntimeError(
                f"the policy took {taken} of {self.max_steps} planned optimizer steps: nothing is saved to "
                f"--ckpt.output_dir {args.ckpt.output_dir}"
            )
        path = Path(args.ckpt.output_dir).absolute()
        new = path / ".new"
        if self.strategy.is_rank_0():
            shutil.rmtree(new, ignore_errors=True)  # left by a run that was killed while it saved
        torch_dist_barrier_and_cuda_sync()
        self.strategy.save_model(self.ema_model if args.train.enable_ema else self.actor, self.tokenizer, str(new))
        if self.strategy.is_rank_0():
            replace_model(new, path)
        torch_dist_barrier_and_cuda_sync()


ObjectivePolicyActor = ray.remote(num_gpus=1)(BaseObjectivePolicyActor)
