"""Builds a GPM the way OpenRLHF builds its reward model: ZeRO-3 init, LoRA, 4-bit, MoE are upstream's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from openrlhf.models import get_llm_for_sequence_regression
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from openrlhf_gpm.models.config import GPMConfig
from openrlhf_gpm.models.gpm import make_gpm_class

logger = logging.getLogger(__name__)


def model_builder(args: SimpleNamespace) -> Callable[..., nn.Module]:
    """`get_llm_for_sequence_regression` for this run's arguments, with a GPM where the scalar reward model was."""
    return partial(build_gpm, args=args)


def build_gpm(
    path: str, model_type: str, *, args: SimpleNamespace, init_value_head: bool = False, **kwargs: Any
) -> nn.Module:
    """A GPM from a causal language model (a new head) or from a GPM checkpoint; other models are upstream's.

    `model_type` is "reward" or "critic"; `kwargs` are those of `get_llm_for_sequence_regression`.
    """
    if model_type != "reward":
        return get_llm_for_sequence_regression(path, model_type, init_value_head=init_value_head, **kwargs)
    stored = getattr(AutoConfig.from_pretrained(path), "gpm", None)
    gpm = GPMConfig.from_dict(stored) if stored else config_from_flags(args)
    if stored and hasattr(args, "data") and hasattr(args.gpm, "dim"):
        logger.warning("%s is a GPM already: its own dim, gate, tau and format are kept, --gpm.* flags are not", path)
    kwargs["value_head_prefix"] = "score"
    model = get_llm_for_sequence_regression(
        path,
        model_type,
        init_value_head=init_value_head and not stored,
        reward_model_class=_gpm_class,
        config_overrides={"gpm": gpm.to_dict(), "value_head_prefix": "score"},
        lora_modules_to_save=["score"] if gpm.gate == "none" else ["score", "gate"],
        **kwargs,
    )
    if init_value_head and not stored and gpm.gate != "none":
        _zero_(model.gate.weight)
    return model


def config_from_flags(args: SimpleNamespace) -> GPMConfig:
    """The GPM that `train_rm`'s flags describe; a flag that is not given keeps `GPMConfig`'s default."""
    flags = {"dim": args.gpm.dim, "gate": args.gpm.gate, "tau": args.gpm.tau}
    return GPMConfig(
        normalize=not args.gpm.no_normalize,
        chat_template=args.data.apply_chat_template,
        input_template=args.data.input_template,
        max_len=args.data.max_len,
        **{name: value for name, value in flags.items() if value is not None},
    )


def _gpm_class(
    pretrained_class: type[PreTrainedModel], trunk_class: type[PreTrainedModel], _prefix: str, packing_samples: bool
) -> type[PreTrainedModel]:
    return make_gpm_class(pretrained_class, trunk_class, packing_samples)


def _zero_(weight: nn.Parameter) -> None:
    """Every lambda starts equal. Under ZeRO-3 the weight is a shard and has to be gathered first."""
    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")), torch.no_grad():
        weight.zero_()
