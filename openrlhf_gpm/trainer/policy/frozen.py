"""Frozen policies on real weights: shards on the CPU, put in place of the policy's for a forward pass.

A rank keeps of each frozen policy what it keeps of the policy: under ZeRO-3 its part of every parameter, otherwise all
of it. So they cost no GPU memory, and following the policy needs no communication.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.models import Actor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from openrlhf_gpm.files import temporary
from openrlhf_gpm.objectives import frozen as rules


class FrozenPolicies:
    """Some of `ref`, `iteration` and `ema`, by name, on one rank of a DeepSpeed policy.

    `ref` is read from --frozen.ref. The others start as copies of the policy, which must be the run's start.
    every: `Objective.iteration_every`.
    """

    def __init__(self, policy: Actor, strategy: Any, names: tuple[str, ...], every: int | None = None) -> None:
        args = strategy.args
        self.engine, self.rules, self.every = policy.model, rules.from_args(args), every
        self.step = 0  # rollout batches that the policy was trained on
        self.shards: dict[str, list[Tensor]] = {}
        for name in names:
            if name == "ref":
                self.shards[name] = read_shards(self.rules.ref or args.actor.model_name_or_path, strategy)
            else:
                # An average of bf16 numbers would stand still: a step's share of it is below their precision.
                dtype = torch.float32 if name == "ema" else None
                self.shards[name] = [_to_cpu(part, dtype) for part in self._parts()]

    def _parts(self) -> list[Tensor]:
        """This rank's part of each parameter of the policy, where it lies."""
        if hasattr(self.engine, "empty_partition_cache"):
            self.engine.empty_partition_cache()  # what ZeRO-3 has gathered is a copy: it must be gathered anew
        return own_parts(self.engine.module)

    @contextmanager
    def in_place(self, name: str) -> Iterator[None]:
        """The policy has the weights of the frozen policy `name` inside the block, and its own again after it."""
        parts = self._parts()
        own = [_to_cpu(part) for part in parts]
        _copy(parts, self.shards[name])
        try:
            yield
        finally:
            _copy(self._parts(), own)

    def follow(self) -> None:
        """Let every frozen policy follow the policy by its rule; after each rollout batch that trained it."""
        self.step += 1
        shares = {name: self.rules.share(name, self.step, self.every) for name in self.shards}
        if not any(shares.values()):
            return
        for i, part in enumerate(self._parts()):
            for name, share in shares.items():
                if share:
                    own = self.shards[name][i]
                    own.lerp_(part.detach().to("cpu", own.dtype), share)

    def save(self, path: Path) -> None:
        """Write this rank's shards, but for `ref`, whole or not at all."""
        tensors = {
            f"{name}/{i}": part for name, parts in self.shards.items() if name != "ref" for i, part in enumerate(parts)
        }
        with temporary(path) as new:
            save_file(tensors, new, metadata={"step": str(self.step)})

    def load(self, path: Path) -> None:
        """Read what `save` wrote. Raises ValueError for a file that is missing or of other shards."""
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: this checkpoint is of a run without frozen policies, or of another number "
                "of ranks; give that run's flags again, or start over"
            )
        with safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])
            for name, parts in self.shards.items():
                for i, part in enumerate(parts if name != "ref" else ()):
                    saved = file.get_tensor(f"{name}/{i}")
                    if saved.shape != part.shape:
                        raise ValueError(f"{path}: {name} has the shards of another number of ranks: use that again")
                    part.copy_(saved)


def own_parts(model: torch.nn.Module) -> list[Tensor]:
    """This rank's part of each parameter: its ZeRO-3 shard, or the whole."""
    return [getattr(parameter, "ds_tensor", parameter).data for parameter in model.parameters()]


@torch.no_grad()
def read_shards(path: str, strategy: Any) -> list[Tensor]:
    """The parts that this rank would own of the policy in `path`, on the CPU. All ranks call it together."""
    args: SimpleNamespace = strategy.args
    model = Actor(
        path,
        attn_implementation=args.ds.attn_implementation,
        experts_implementation=args.ds.experts_implementation,
        param_dtype=args.ds.param_dtype,
        ds_config=strategy.get_ds_eval_config(offload=True),
    )
    shards = [_to_cpu(part) for part in own_parts(model.model)]
    del model
    gc.collect()
    return shards


def _to_cpu(part: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return part.detach().to("cpu", dtype or part.dtype, copy=True)


@torch.no_grad()
def _copy(parts: list[Tensor], values: list[Tensor]) -> None:
    for part, value in zip(parts, values, strict=True):
        part.copy_(value)
