"""Embeddings from a vLLM engine in this process, which sees what `openrlhf-gpm convert --to classifier` wrote.

Prefix caching computes once what texts begin with. vLLM is imported when an engine starts.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.checkpoints.checkpoint import Checkpoint, open_checkpoint
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.samples.formatting import Encoded
from openrlhf_gpm.scoring.backend import pick_device
from openrlhf_gpm.scoring.classifier import check_layout, check_length, read_rows, texts_of
from openrlhf_gpm.scoring.options import BATCH_TOKENS, check_options

CPU_BLOCK = 32
"""Tokens per cache block on a CPU, where vLLM takes multiples of 32. Prefixes are shared in whole blocks."""

MAX_SEQS = 256
"""Requests per step of the engine, vLLM's default; a step has room for one token of each."""


class VLLMBackend:
    """A vLLM engine as the backend of a `GPM`.

    Args:
        path: a checkpoint in layout "classifier".
        dtype: of the trunk; default: as stored on a GPU, fp32 on a CPU. The head is fp32 in any case.
        device: "cuda", "cuda:1" (the other GPUs are then hidden from this process) or "cpu"; default: what this vLLM
            is built for.
        batch_tokens: tokens per step of the engine, at least MAX_SEQS.
        share_prompt: "auto": prefix caching; "off": without.
        options: more arguments of vllm.LLM, such as tensor_parallel_size or gpu_memory_utilization.

    Raises:
        ValueError: a checkpoint in another layout, a device that vLLM does not have, or no vLLM.
    """

    def __init__(
        self,
        path: Checkpoint | str | os.PathLike[str],
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        share_prompt: str = "auto",
        **options: Any,
    ) -> None:
        check_options(batch_tokens, share_prompt, "vllm")
        checkpoint = open_checkpoint(path)
        self.config: GPMConfig = checkpoint.gpm
        self.hidden_size = checkpoint.hidden_size
        self.batch_tokens = batch_tokens
        self.share_prompt = share_prompt == "auto"
        check_layout(checkpoint, "vllm")
        asked = None if device is None else pick_device(device)
        if asked is not None and asked.type == "cuda" and asked.index is not None:
            _show_only(asked.index)  # vLLM takes the first GPU that it sees
        try:
            from vllm import LLM, PoolingParams
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ValueError(f"--backend vllm: cannot import vLLM ({error}): install it, or use torch") from error

        self.device = torch.device(current_platform.device_type)
        if asked is not None and asked.type != self.device.type:
            raise ValueError(f"--device {device}: this vLLM is built for {self.device}: leave --device out")
        on_cpu = self.device.type == "cpu"
        if dtype is None:  # vLLM's own "auto" would make bf16 of fp32
            dtype = torch.float32 if on_cpu else checkpoint.hf.dtype or "auto"
        self.llm = LLM(
            model=str(checkpoint.path),
            runner="pooling",
            dtype=str(dtype).removeprefix("torch."),
            enable_prefix_caching=self.share_prompt,
            max_num_batched_tokens=max(batch_tokens, MAX_SEQS),
            max_num_seqs=MAX_SEQS,
            **({"block_size": CPU_BLOCK} if on_cpu else {}) | options,
        )
        self.longest = self.llm.llm_engine.model_config.max_model_len  # tokens
        # The head's raw numbers. "classify" is the pooling task that reads the prefix cache.
        self.params = PoolingParams(task="classify", use_activation=False)

    def embed_groups(self, groups: Sequence[Sequence[Encoded]]) -> tuple[Tensor, Tensor]:
        """See `Backend`. Raises ValueError for a sample that is longer than the engine takes."""
        texts = texts_of(groups, self.config)
        if not texts.ids:
            return torch.empty(0, self.config.dim), torch.ones(len(groups), self.config.k)
        check_length(texts, self.longest)
        outputs = self.llm.encode(
            [{"prompt_token_ids": ids} for ids in texts.ids],
            pooling_params=self.params,
            pooling_task="classify",
            use_tqdm=False,
        )
        rows = torch.stack([output.outputs.data.float().cpu() for output in outputs])
        return read_rows(rows, texts, len(groups), self.config, self.hidden_size)


def _show_only(index: int) -> None:
    """Hide all GPUs that this process sees, except one, from it and its children."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if index >= len(names):
        raise ValueError(f"--device cuda:{index}: there are {len(names)} GPUs")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index]
