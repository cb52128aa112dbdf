"""Scoring groups of responses with a GPM in O(K): K embeddings, then arithmetic (arXiv:2410.02197, section 4).

Evaluation and serving go through `GPM` below, the Ray reward actor through `embed_batch`. Where the embeddings come
from is a backend's affair: `torch_backend.py` or `vllm_backend.py`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from openrlhf_gpm import core
from openrlhf_gpm.checkpoints.checkpoint import load_gpm, read_gpm_config, read_tokenizer
from openrlhf_gpm.config import GPMConfig, Prompt
from openrlhf_gpm.samples.batch import encode_all
from openrlhf_gpm.samples.formatting import Encoded, Formatter, pair_text
from openrlhf_gpm.scoring.torch_backend import (
    BATCH_TOKENS,
    Backend,
    TorchBackend,
    check_share_prompt,
    group_rows,
    pick_device,
)

BACKENDS = ("torch", "vllm")
WINDOW = 16  # batches to read ahead, so that samples of like length can share a batch


class GroupLike(Protocol):
    """One prompt and its K responses. An id of None stands for the group's index, as a string."""

    @property
    def id(self) -> Any: ...
    @property
    def prompt(self) -> Prompt: ...
    @property
    def responses(self) -> Sequence[str]: ...


class _Group(NamedTuple):
    id: Any
    size: int  # K
    samples: list[Encoded]


def load_formatter(path: str | os.PathLike[str]) -> Formatter:
    """The formatter that a checkpoint was trained with. Raises ValueError as `load_gpm` does."""
    config = read_gpm_config(path)
    return Formatter.from_config(read_tokenizer(path), config)


def group_result(v: Tensor, gate: Tensor | None, tau: float) -> dict[str, Any]:
    """What `openrlhf-gpm score` writes about a group, but for its id: plain lists and floats.

    v: (K, 2k); gate: (k,) of the prompt, or None without a gate. Scores are log-odds, i over j in row i.
    Raises ValueError when the embeddings are not finite.
    """
    _require_finite(v, gate)
    embeddings = {"embeddings": v.tolist(), "gate": None if gate is None else gate.tolist()}
    return embeddings | _scores_result(core.group_scores(v, gate, tau))


def pairwise_result(rewards: Tensor, size: int, tau: float) -> dict[str, Any]:
    """`group_result` for head "pairwise", which has no embeddings.

    rewards: (K(K - 1),), r(x, i, j) for i != j in row order; size: K. Both orders of a pair count:
    score(i > j) = (r(x, i, j) - r(x, j, i)) / tau.
    """
    _require_finite(rewards, None)
    r = rewards.new_zeros(size, size)
    r[~torch.eye(size, dtype=torch.bool)] = rewards
    return {"embeddings": None, "gate": None} | _scores_result((r - r.mT) / tau)


def _scores_result(scores: Tensor) -> dict[str, Any]:
    mean = core.mean_scores(scores).tolist()
    return {
        "scores": scores.tolist(),
        "probs": core.group_probs(scores).tolist(),
        "mean_scores": mean,
        "win_rates": core.win_rates(scores).tolist(),
        "ranking": sorted(range(len(mean)), key=lambda i: -mean[i]),  # stable: ties by index
        "von_neumann": core.von_neumann_winner(scores).tolist(),
        "cyclic_share": float(core.cyclic_share(scores)),
    }


def _require_finite(v: Tensor, gate: Tensor | None) -> None:
    if not torch.isfinite(v).all() or (gate is not None and not torch.isfinite(gate).all()):
        raise ValueError("the model's embeddings are not finite: try --dtype fp32, or check the checkpoint's training")


class GPM:
    """A GPM ready to score: backend, tokenizer and the settings it was trained with.

    >>> gpm = GPM.from_pretrained("ckpt/gpm")
    >>> gpm.score("Name a prime.", ["7", "9", "Two."])["ranking"]

    model: a loaded GPM, for a `TorchBackend` with the three arguments that follow the formatter; or None where another
    `backend` is given.
    """

    def __init__(
        self,
        model: Any,
        formatter: Formatter,
        device: torch.device | str = "cpu",
        batch_tokens: int = BATCH_TOKENS,
        share_prompt: str = "auto",
        backend: Backend | None = None,
    ) -> None:
        self.model = model
        self.formatter = formatter
        self.backend = backend or TorchBackend(model, device, batch_tokens, formatter.pad_token_id, share_prompt)
        self.config = self.backend.config
        self.device = self.backend.device
        self.batch_tokens = batch_tokens

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        share_prompt: str = "auto",
        backend: str = "torch",
    ) -> "GPM":
        """Load a checkpoint directory.

        Args:
            path: of a GPM; for backend "vllm", of one that `openrlhf-gpm convert --to classifier` wrote.
            device: default: the GPU where there is one. vLLM knows one device only, that of its build.
            dtype: of the trunk; default: as stored on a GPU, fp32 on a CPU (bf16 is slower there).
            batch_tokens: padded tokens per forward pass; vLLM: of a step.
            share_prompt: "auto": the tokens that a group's samples begin with are computed once where that pays and
                the trunk allows it; "off": every sample in full.
            backend: "torch" or "vllm".

        Raises:
            ValueError: as `load_gpm` does.
        """
        if backend not in BACKENDS:
            raise ValueError(f"--backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
        check_share_prompt(share_prompt)
        formatter = load_formatter(path)
        if backend == "vllm":
            from openrlhf_gpm.scoring.vllm_backend import VLLMBackend

            vllm = VLLMBackend(path, dtype=dtype, device=device, batch_tokens=batch_tokens, share_prompt=share_prompt)
            return cls(None, formatter, batch_tokens=batch_tokens, backend=vllm)
        device = pick_device(device)
        if dtype is None and device.type == "cpu":
            dtype = torch.float32
        return cls(load_gpm(path, dtype=dtype, device=device), formatter, device, batch_tokens, share_prompt)

    def embed(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N pairs, any number -> embeddings (N, 2k) and gates (N, k), fp32 on the CPU, in the order given.

        Each pair is a group of its own. With head "pairwise" a response is what `pair_text` makes of two.
        """
        return self.backend.embed_groups([[e] for e in encode_all(self.formatter, prompts, responses)])

    def score(self, prompt: Prompt, responses: Sequence[str], id: Any = None) -> dict[str, Any]:
        """Compare K responses to one prompt.

        Returns:
            id, embeddings [K][2k] (None for head "pairwise"), gate [k] or None, scores [K][K] (log-odds, i over j),
            probs [K][K], mean_scores [K] and win_rates [K] (over the other K - 1; 0 and 1/2 for K = 1), ranking [best
            first, by mean score], von_neumann [K] (the policy over the group that none beats) and cyclic_share in
            [0, 1].

        Raises:
            ValueError: no response, or one that the formatter rejects.
        """
        return next(self._score([(id, prompt, responses)], 0))

    def scores(self, prompt: Prompt, responses: Sequence[str]) -> Tensor:
        """Log-odds that row beats column: (K, K), skew-symmetric. Raises ValueError as `score` does."""
        return torch.tensor(self.score(prompt, responses)["scores"])

    def score_groups(self, groups: Iterable[GroupLike], first_index: int = 0) -> Iterator[dict[str, Any]]:
        """`score` for many groups: results in the same order, samples of like length batched together.

        first_index: the index of the first group, which names groups without an id.
        """
        return self._score(((group.id, group.prompt, group.responses) for group in groups), first_index)

    def _score(
        self, groups: Iterable[tuple[Any, Prompt, Sequence[str]]], first_index: int
    ) -> Iterator[dict[str, Any]]:
        window: list[_Group] = []
        tokens = 0
        for index, (given, prompt, responses) in enumerate(groups, start=first_index):
            name = str(index) if given is None else given
            texts = list(responses)
            if not texts:
                raise ValueError(f"group {name!r} has no responses: give at least one")
            try:
                samples = [self.formatter.encode(prompt, text) for text in sample_texts(self.config, texts)]
            except ValueError as error:
                raise ValueError(f"group {name!r}: {error}") from error
            window.append(_Group(name, len(texts), samples))
            tokens += sum(len(sample.input_ids) for sample in samples)
            if tokens >= WINDOW * self.batch_tokens:
                yield from self._score_window(window)
                window, tokens = [], 0
        if window:
            yield from self._score_window(window)

    def _score_window(self, window: list[_Group]) -> Iterator[dict[str, Any]]:
        samples = [group.samples for group in window]
        v, gate = self.backend.embed_groups(samples)
        for group, rows, one_gate in zip(window, group_rows(samples), gate, strict=True):
            try:
                if self.config.head == "pairwise":
                    result = pairwise_result(v[rows, 0], group.size, self.config.tau)
                else:
                    result = group_result(v[rows], one_gate if self.config.gated else None, self.config.tau)
            except ValueError as error:
                raise ValueError(f"group {group.id!r}: {error}") from error
            yield {"id": group.id, **result}


def sample_texts(config: GPMConfig, responses: Sequence[str]) -> list[str]:
    """What is encoded after the prompt: each response, or for head "pairwise" each ordered pair, in row order."""
    if config.head != "pairwise":
        return list(responses)
    return [pair_text(a, b) for i, a in enumerate(responses) for j, b in enumerate(responses) if i != j]
