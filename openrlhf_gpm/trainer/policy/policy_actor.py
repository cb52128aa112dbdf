"""The policy's Ray actor: it keeps frozen policies; a policy is saved when trained as planned, whole or not at all."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray
import torch
from openrlhf.trainer.ray.ppo_actor import BasePolicyModelActor
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync

from openrlhf_gpm import objectives
from openrlhf_gpm.files import replace_model
from openrlhf_gpm.trainer.policy.common_checkpoint import CommonCheckpoint
from openrlhf_gpm.trainer.policy.disk import OPTIMIZER, room, weights
from openrlhf_gpm.trainer.policy.frozen import FrozenPolicies
from openrlhf_gpm.trainer.policy.held_port import HeldPort
from openrlhf_gpm.trainer.policy.resume import last_checkpoint

FORWARD = "forward_"
"""`forward_NAME` in a batch call is `forward` with the weights of the frozen policy NAME."""

MAGNET = "magnet"
"""Subfolder of --ckpt.output_dir for a frozen policy that is saved."""


class BaseObjectivePolicyActor(HeldPort, BasePolicyModelActor):
    """The upstream policy actor with frozen policies, and checks before the trained policy is saved."""

    def init_model_from_pretrained(self, strategy: Any, pretrain: str, *args: Any, **kwargs: Any) -> None:
        """Upstream's; then the frozen policies that the objective needs, from the checkpoint where one was loaded."""
        super().init_model_from_pretrained(strategy, pretrain, *args, **kwargs)
        self.actor.model.checkpoint_engine = CommonCheckpoint(self.actor.model.checkpoint_engine)
        self.objective = objectives.from_args(strategy.args)
        needs = objectives.frozen_policies(strategy.args)
        self.frozen = FrozenPolicies(self.actor, strategy, needs, self.objective.iteration_every)
        checkpoint = last_checkpoint(Path(strategy.args.ckpt.path)) if self.checkpoint_states else None
        if needs and checkpoint:
            self.frozen.load(_frozen_file(checkpoint))

    def execute_batch(self, method_name: str, all_data: Any, start_idx: int, end_idx: int) -> list[Any]:
        """Upstream's; `forward_ema`, `forward_ref` and so on are `forward` of that frozen policy."""
        if not method_name.startswith(FORWARD):
            return super().execute_batch(method_name, all_data, start_idx, end_idx)
        with self.frozen.in_place(method_name.removeprefix(FORWARD)):
            return super().execute_batch("forward", all_data, start_idx, end_idx)

    def fit(self, kl_ctl: float = 0) -> dict[str, float]:
        """Upstream's update; then the frozen policies follow."""
        status = super().fit(kl_ctl)
        self.frozen.follow()
        return status

    def save_checkpoint(self, tag: str, *args: Any, **kwargs: Any) -> None:
        """Upstream's, after the frozen policies, so that a complete checkpoint has them."""
        if self.disable_ds_ckpt:
            super().save_checkpoint(tag, *args, **kwargs)
            return
        folder = Path(self.strategy.args.ckpt.path) / "_actor"
        trained, size = weights(self.actor.model)
        averages = sum(4 * trained for name in self.frozen.shards if name != "ref")
        with self._room(folder, size + OPTIMIZER * trained + averages, "a checkpoint"):
            if self.frozen.shards:
                (folder / tag).mkdir(exist_ok=True)
                self.frozen.save(_frozen_file(folder / tag))
            super().save_checkpoint(tag, *args, **kwargs)

    def save_model(self) -> None:
        """Write the policy, and the magnet where it is asked for, under a temporary name; then move them in place.

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
        size = weights(self.actor.model)[1] * (1 + len(self.objective.saved))
        with self._room(path, size, "the trained policy"):
            self.strategy.save_model(self.ema_model if args.train.enable_ema else self.actor, self.tokenizer, str(new))
            for name in self.objective.saved:
                with self.frozen.in_place(name):
                    self.strategy.save_model(self.actor, self.tokenizer, str(new / MAGNET))
        if self.strategy.is_rank_0():
            replace_model(new, path)
        torch_dist_barrier_and_cuda_sync()

    def _room(self, folder: Path, needed: int, what: str) -> AbstractContextManager[None]:
        """`room`, which asks the disk before the block on rank 0 only: others may have begun to write."""
        last = last_checkpoint(Path(self.strategy.args.ckpt.path))
        remedy = f"--ckpt.load_enable goes on from {last}" if last else "there is no earlier checkpoint to go on from"
        return room(folder, needed, what, remedy, ask=self.strategy.is_rank_0())


def _frozen_file(checkpoint: Path) -> Path:
    return checkpoint / f"frozen_rank{torch.distributed.get_rank()}.safetensors"


ObjectivePolicyActor = ray.remote(num_gpus=1)(BaseObjectivePolicyActor)
