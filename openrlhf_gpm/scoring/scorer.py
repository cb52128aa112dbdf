"""The one scorer: groups of responses in, results out, in O(K): K embeddings, then arithmetic.

Embeddings come from a backend (`torch_backend.py`, `vllm_backend.py` or `url_backend.py`), numbers from `results.py`.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from openrlhf_gpm.checkpoints.checkpoint import Checkpoint, load_gpm, open_checkpoint
from openrlhf_gpm.config import GPMConfig, Prompt
from openrlhf_gpm.data import Group, PreferenceGroup
from openrlhf_gpm.samples.batch import encode_all, unique_groups
from openrlhf_gpm.samples.checks import check_text
from openrlhf_gpm.samples.encoded import first_of_equals
from openrlhf_gpm.samples.formatting import Encoded, Formatter, pair_text
from openrlhf_gpm.samples.tally import warnings_of
from openrlhf_gpm.scoring.backend import Backend, pick_device
from openrlhf_gpm.scoring.options import BATCH_TOKENS, URL_TIMEOUT, check_options, is_full
from openrlhf_gpm.scoring.results import group_result, is_finite, pairwise_result
from openrlhf_gpm.scoring.torch_backend import TorchBackend
from openrlhf_gpm.scoring.url_backend import URLBackend

logger = logging.getLogger(__name__)

FINITE = ("refuse", "nan")

Window = list[tuple[Group | PreferenceGroup, list[Encoded]]]
"""Groups, each with an id, and their samples."""


class GPM:
    """A GPM ready to score: a backend and the formatter that the model was trained with.

    >>> gpm = GPM.from_pretrained("ckpt/gpm")
    >>> gpm.score("Name a prime.", ["7", "9", "Two."])["ranking"]
    """

    def __init__(self, backend: Backend, formatter: Formatter) -> None:
        self.backend = backend
        self.formatter = formatter
        self._collapse_said = False

    @classmethod
    def from_pretrained(
        cls,
        path: Checkpoint | str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        share_prompt: str = "auto",
        backend: str = "torch",
        trust_remote_code: bool = False,
        url: str | None = None,
        url_key: str | None = None,
        url_timeout: float = URL_TIMEOUT,
    ) -> "GPM":
        """Load a checkpoint.

        Args:
            path: the directory of a GPM; for "vllm" and "url", what `openrlhf-gpm convert --to classifier` wrote.
            device: default: the GPU where there is one. vLLM knows one device only, that of its build.
            dtype: of the trunk; default: as stored on a GPU, fp32 on a CPU (bf16 is slower there).
            batch_tokens: tokens per forward pass, padding included; vLLM: per step.
            share_prompt: "auto": the tokens that a group's samples begin with are computed once where that saves
                tokens and the trunk allows it; "off": every sample in full.
            backend: "torch"; "vllm", an engine in this process; or "url", a running `vllm serve`, whose device, dtype
                and prefix cache are its own.
            trust_remote_code: run code that the folder brings; without it such a folder is refused.
            url, url_key, url_timeout: of that server: http://HOST:PORT, its API key, seconds that an answer may take.

        Raises:
            ValueError: as `load_gpm` does.
        """
        check_options(batch_tokens, share_prompt, backend, url, url_timeout)
        checkpoint = open_checkpoint(path, trust_remote_code)
        formatter = checkpoint.formatter()
        if url is not None:
            return cls(URLBackend(checkpoint, url, url_key, batch_tokens, url_timeout), formatter)
        if backend == "vllm":
            from openrlhf_gpm.scoring.vllm_backend import VLLMBackend

            vllm = VLLMBackend(checkpoint, dtype, device, batch_tokens, share_prompt)
            return cls(vllm, formatter)
        device = pick_device(device)
        if dtype is None and device.type == "cpu":
            dtype = torch.float32
        model = load_gpm(checkpoint, dtype=dtype, device=device)
        return cls(TorchBackend(model, device, batch_tokens, formatter.pad_token_id, share_prompt), formatter)

    @property
    def config(self) -> GPMConfig:
        """The settings that the model was trained with."""
        return self.backend.config

    def embed(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N pairs, any number -> embeddings (N, 2k) and gates (N, k), fp32 on the CPU, in the order given.

        Each pair is a group of its own. With head "pairwise" a response is what `pair_text` makes of two.
        """
        samples = encode_all(self.formatter, prompts, responses)
        return self.backend.embed_groups([[sample] for sample in samples])

    def score(self, prompt: Prompt, responses: Sequence[str], id: Any = None) -> dict[str, Any]:
        """Compare K responses to one prompt.

        Returns:
            id, embeddings [K][2k] (None for head "pairwise"), gate [k] or None, scores [K][K] (log-odds, i over j),
            probs [K][K], mean_scores [K] and win_rates [K] (over the other K - 1; 0 and 1/2 for K = 1), ranking [best
            first, by mean score], von_neumann [K] (the policy over the group that none beats), cyclic_share in
            [0, 1], and warnings, a list of texts, where the model does not read the group as it was given.

        Raises:
            ValueError: no list of responses or an empty one; a response that the formatter rejects; embeddings that
                are not finite.
        """
        if isinstance(responses, (str, bytes)) or not isinstance(responses, Sequence):
            raise ValueError(f"responses must be a list of texts, got {responses!r:.80}: put it into a list")
        (result,) = self.score_groups([Group(prompt, list(responses), id)])
        return result

    def scores(self, prompt: Prompt, responses: Sequence[str]) -> Tensor:
        """Log-odds that row beats column: (K, K), skew-symmetric. Raises ValueError as `score` does."""
        return torch.tensor(self.score(prompt, responses)["scores"])

    def score_groups(
        self, groups: Iterable[Group | PreferenceGroup], first_index: int = 0, finite: str = "refuse"
    ) -> Iterator[dict[str, Any]]:
        """`score` for many groups: results in the same order, samples of similar length batched together.

        Args:
            groups: read lazily, a few batches ahead.
            first_index: the index of the first group; a group without an id is named by its index.
            finite: what to do where the model gives NaN or infinity. "refuse": raise ValueError. "nan": go on; the
                scores of such a response are NaN, and what follows from all scores of its group is None.
        """
        if finite not in FINITE:
            raise ValueError(f"finite must be one of {', '.join(FINITE)}; got {finite!r}")
        compared = different = False
        for group, encoded, v, gate in self._embedded(groups, first_index):
            result = self._result(v, gate, len(group.responses))
            if finite == "refuse" and not is_finite(result):
                raise ValueError(
                    f"group {group.id!r}: the model's embeddings are not finite: try --dtype fp32, or check the "
                    "checkpoint's training"
                )
            compared |= len(set(first_of_equals(encoded))) > 1
            different |= any(map(any, result["scores"]))
            texts = sample_texts(self.config, group.responses)
            said = warnings_of(self.formatter, group.prompt, texts, encoded, sample_kind(self.config))
            yield {"id": group.id, **result} | ({"warnings": said} if said else {})
        if compared and not different and not self._collapse_said:
            self._collapse_said = True  # once, though a file comes in many shards
            logger.warning("every score is 0: the model's embeddings have collapsed; train it with a lower --adam.lr")

    def embed_groups(
        self, groups: Iterable[Group | PreferenceGroup], first_index: int = 0
    ) -> Iterator[tuple[Group | PreferenceGroup, Tensor, Tensor]]:
        """What scores are made of: (group, with an id; embeddings (K, 2k); gate (k,)), fp32 on the CPU, in order.

        The arguments are those of `score_groups`. Embeddings may not be finite.
        """
        for group, _, v, gate in self._embedded(groups, first_index):
            yield group, v, gate

    def _embedded(
        self, groups: Iterable[Group | PreferenceGroup], first_index: int
    ) -> Iterator[tuple[Group | PreferenceGroup, list[Encoded], Tensor, Tensor]]:
        """(group, its samples, embeddings, gate). Equal samples of a group are encoded once, so they tie exactly."""
        for window in self._windows(groups, first_index):
            samples = [encoded for _, encoded in window]
            unique, rows = unique_groups(samples)
            v, gate = self.backend.embed_groups(unique)
            parts = v[rows].split([len(encoded) for encoded in samples])
            for (group, encoded), v_group, gate_group in zip(window, parts, gate, strict=True):
                yield group, encoded, v_group, gate_group

    def _windows(self, groups: Iterable[Group | PreferenceGroup], first_index: int) -> Iterator[Window]:
        window: Window = []
        tokens = 0
        for index, group in enumerate(groups, start=first_index):
            named = replace(group, id=str(index) if group.id is None else group.id)
            if not group.responses:
                raise ValueError(f"group {named.id!r} has no responses: give at least one")
            try:
                samples = self.formatter.encode_group(group.prompt, sample_texts(self.config, group.responses))
            except ValueError as error:
                raise ValueError(f"group {named.id!r}: {error}") from error
            window.append((named, samples))
            tokens += sum(len(sample.input_ids) for sample in samples)
            if is_full(tokens, self.backend.batch_tokens):
                yield window
                window, tokens = [], 0
        if window:
            yield window

    def _result(self, v: Tensor, gate: Tensor, size: int) -> dict[str, Any]:
        if self.config.head == "pairwise":
            return pairwise_result(v[:, 0], size, self.config.tau)
        return group_result(v, gate if self.config.gated else None, self.config.tau)


def sample_kind(config: GPMConfig) -> str:
    """What a sample is, for messages: "response" or "pair"."""
    return "pair" if config.head == "pairwise" else "response"


def sample_texts(config: GPMConfig, responses: Sequence[str]) -> list[str]:
    """What is encoded after the prompt: each response, or for head "pairwise" each ordered pair, in row order."""
    for i, response in enumerate(responses):
        check_text(response, f"responses[{i}]: a response")
    if config.head != "pairwise":
        return list(responses)
    return [pair_text(a, b) for i, a in enumerate(responses) for j, b in enumerate(responses) if i != j]
