"""Builds a GPM as OpenRLHF builds its reward model: ZeRO-3 init, LoRA, 4-bit and MoE are upstream's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.plugins import exit_with_usage_error
from openrlhf.utils.logging_utils import init_logger
from torch import nn

from openrlhf_gpm.checkpoints.checkpoint import open_pretrained
from openrlhf_gpm.models.gpm import make_gpm_class
from openrlhf_gpm.trainer.reward.flags import START, config_from_flags
from openrlhf_gpm.trainer.reward.run_state import own_folders

logger = init_logger(__name__)


def model_builder(args: SimpleNamespace) -> Callable[..., nn.Module]:
    """`get_llm_for_sequence_regression` for this run's arguments, with a GPM in place of the scalar reward model.

    It is the first thing that a run asks for, so the run takes its folders here.
    """
    if hasattr(args.ckpt, "output_dir") and not hasattr(args, "actor"):  # train_rm; train_ppo_ray owns its folders
        try:
            own_folders(args)
        except ValueError as error:
            exit_with_usage_error("train_rm", error)
    return partial(build_gpm, args=args)


def build_gpm(
    path: str, model_type: str, *, args: SimpleNamespace, init_value_head: bool = False, **kwargs: Any
) -> nn.Module:
    """A GPM from a causal language model (a new head) or from a GPM checkpoint; other models are upstream's.

    `model_type` is "reward" or "critic"; `kwargs` are those of `get_llm_for_sequence_regression`.
    """
    if model_type != "reward":
        return get_llm_for_sequence_regression(path, model_type, init_value_head=init_value_head, **kwargs)
    start = open_pretrained(path, START, args.trust_remote_code)
    gpm = start.gpm if start.is_gpm else config_from_flags(args)
    if start.is_gpm and init_value_head:
        logger.warning("%s is a GPM already: its own settings are kept, not those of --gpm.*", path)
    kwargs["value_head_prefix"] = "score"
    to_save = ["score", *(["gate"] if gpm.gated else []), *(["temperature"] if gpm.learn_tau else [])]
    model = get_llm_for_sequence_regression(
        path,
        model_type,
        init_value_head=init_value_head and not start.is_gpm,
        reward_model_class=_gpm_class,
        config_overrides={"gpm": gpm.to_dict(), "value_head_prefix": "score"},
        lora_modules_to_save=to_save,
        **kwargs,
    )
    if init_value_head and not start.is_gpm and gpm.gated:
        _zero_(model.gate.weight)
    return model


def store_tau(model: Any) -> None:
    """Write the current value of a learnable tau into the model's config, where scoring reads it. Collective."""
    if not model.config.gpm["learn_tau"]:
        return
    temperature = model.temperature
    gathered = deepspeed.zero.GatheredParameters([temperature.rho], enabled=hasattr(temperature.rho, "ds_id"))
    with gathered, torch.no_grad():
        model.config.gpm["tau"] = float(temperature())


def _gpm_class(pretrained_class: type, trunk_class: type, _prefix: str, packing_samples: bool) -> type:
    """`make_gpm_class` with the arguments of OpenRLHF's `_get_reward_model`; a GPM's head is always `score`."""
    return make_gpm_class(pretrained_class, trunk_class, packing_samples)


def _zero_(weight: nn.Parameter) -> None:
    """Set the weight to 0, so that every lambda starts equal. Under ZeRO-3 it is a shard and is gathered first."""
    with (
        deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")),
        torch.no_grad(),
    ):
        weight.zero_()
