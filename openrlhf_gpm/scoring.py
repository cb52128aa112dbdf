"""Scoring groups of responses with a GPM in O(K): K embeddings, then arithmetic (arXiv:2410.02197, section 4).

Everything that scores goes through `embed_encoded`: evaluation, serving, the Ray reward actor and `GPM` below.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from openrlhf_gpm import core
from openrlhf_gpm.models.checkpoint import load_gpm, read_gpm_config
from openrlhf_gpm.models.formatting import Encoded, Formatter, Prompt, collate

BATCH_TOKENS = 16384
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
    prompt: Prompt
    responses: Sequence[str]


def load_formatter(path: str | os.PathLike[str]) -> Formatter:
    """The formatter that a checkpoint was trained with. Raises ValueError as `load_gpm` does."""
    from transformers import AutoTokenizer

    config = read_gpm_config(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no tokenizer that transformers can read: copy or save it again") from error
    return Formatter.from_config(tokenizer, config)


@torch.no_grad()
def embed_encoded(
    model: Any, encoded: list[Encoded], pad_token_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """One model call on B encoded samples -> embeddings (B, 2k) and gates (B, k), fp32 on the CPU."""
    batch = {name: tensor.to(device) for name, tensor in collate(encoded, pad_token_id).items()}
    v, gate = model(**batch)
    return v.float().cpu(), gate.float().cpu()


def embed_batch(
    model: Any, formatter: Formatter, prompts: Sequence[Prompt], responses: Sequence[str], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """One model call on B (prompt, response) pairs -> embeddings (B, 2k) and gates (B, k), fp32 on the CPU.

    `model` may be wrapped (DeepSpeed); its train or eval mode is the caller's. The caller bounds B.
    Raises ValueError where the formatter rejects a pair.
    """
    return embed_encoded(model, _encode(formatter, prompts, responses), formatter.pad_token_id, device)


def group_result(v: Tensor, gate: Tensor | None, tau: float) -> dict[str, Any]:
    """What `openrlhf-gpm score` writes about a group, but for its id: plain lists and floats.

    v: (K, 2k); gate: (k,) of the prompt, or None without a gate. Scores are log-odds, i over j in row i.
    Raises ValueError when the embeddings are not finite.
    """
    if not torch.isfinite(v).all() or (gate is not None and not torch.isfinite(gate).all()):
        raise ValueError("the model's embeddings are not finite: try --dtype fp32, or check the checkpoint's training")
    scores = core.group_scores(v, gate, tau)  # (K, K)
    mean = core.mean_scores(scores).tolist()
    return {
        "embeddings": v.tolist(),
        "gate": None if gate is None else gate.tolist(),
        "scores": scores.tolist(),
        "probs": core.group_probs(scores).tolist(),
        "mean_scores": mean,
        "win_rates": core.win_rates(scores).tolist(),
        "ranking": sorted(range(len(mean)), key=lambda i: -mean[i]),  # stable: ties by index
        "von_neumann": core.von_neumann_winner(scores).tolist(),
        "cyclic_share": float(core.cyclic_share(scores)),
    }


class GPM:
    """A GPM ready to score: model, tokenizer and the settings it was trained with.

    >>> gpm = GPM.from_pretrained("ckpt/gpm")
    >>> gpm.score("Name a prime.", ["7", "9", "Two."])["ranking"]
    """

    def __init__(
        self, model: Any, formatter: Formatter, device: torch.device | str = "cpu", batch_tokens: int = BATCH_TOKENS
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"--batch_tokens must be >= 1, got {batch_tokens}")
        self.model = model
        self.formatter = formatter
        self.config = model.gpm_config
        self.device = torch.device(device)
        self.batch_tokens = batch_tokens

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> "GPM":
        """Load a checkpoint directory.

        device: default: the GPU where there is one. dtype: of the trunk; default: as stored on a GPU, fp32 on a CPU
        (bf16 is slower there). batch_tokens: padded tokens per forward pass. Raises ValueError as `load_gpm` does.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None and device.type == "cpu":
            dtype = torch.float32
        formatter = load_formatter(path)
        return cls(load_gpm(path, dtype=dtype, device=device), formatter, device, batch_tokens)

    def embed(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N pairs, any number -> embeddings (N, 2k) and gates (N, k), fp32 on the CPU, in the order given."""
        return self._embed(_encode(self.formatter, prompts, responses))

    def score(self, prompt: Prompt, responses: Sequence[str], id: Any = None) -> dict[str, Any]:
        """Compare K responses to one prompt.

        Returns:
            id, embeddings [K][2k], gate [k] or None, scores [K][K] (log-odds, i over j), probs [K][K],
            mean_scores [K] and win_rates [K] (over the other K - 1; 0 and 1/2 for K = 1), ranking [best first, by mean
            score], von_neumann [K] (the policy over the group that none beats) and cyclic_share in [0, 1].

        Raises:
            ValueError: no response, or one that the formatter rejects.
        """
        return next(self.score_groups([_Group(id, prompt, responses)]))

    def score_groups(self, groups: Iterable[GroupLike], first_index: int = 0) -> Iterator[dict[str, Any]]:
        """`score` for many groups: results in the same order, samples of like length batched together.

        first_index: the index of the first group, which names groups without an id.
        """
        window: list[_Group] = []
        encoded: list[Encoded] = []
        tokens = 0
        for index, group in enumerate(groups, start=first_index):
            name = str(index) if group.id is None else group.id
            responses = list(group.responses)
            if not responses:
                raise ValueError(f"group {name!r} has no responses: give at least one")
            try:
                samples = [self.formatter.encode(group.prompt, response) for response in responses]
            except ValueError as error:
                raise ValueError(f"group {name!r}: {error}") from error
            window.append(_Group(name, group.prompt, responses))
            encoded += samples
            tokens += sum(len(sample.input_ids) for sample in samples)
            if tokens >= WINDOW * self.batch_tokens:
                yield from self._score_window(window, encoded)
                window, encoded, tokens = [], [], 0
        if window:
            yield from self._score_window(window, encoded)

    def _score_window(self, window: list[_Group], encoded: list[Encoded]) -> Iterator[dict[str, Any]]:
        v, gate = self._embed(encoded)
        start = 0
        for group in window:
            rows = slice(start, start + len(group.responses))
            start = rows.stop
            one_gate = gate[rows][_fullest_prompt(encoded[rows])] if self.config.gated else None
            try:
                yield {"id": group.id, **group_result(v[rows], one_gate, self.config.tau)}
            except ValueError as error:
                raise ValueError(f"group {group.id!r}: {error}") from error

    def _embed(self, encoded: list[Encoded]) -> tuple[Tensor, Tensor]:
        v = torch.empty(len(encoded), self.config.dim)
        gate = torch.empty(len(encoded), self.config.k)
        for batch in length_batches([len(e.input_ids) for e in encoded], self.batch_tokens):
            samples = [encoded[i] for i in batch]
            v[batch], gate[batch] = embed_encoded(self.model, samples, self.formatter.pad_token_id, self.device)
        return v, gate


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Split sample indices into batches of like length, longest first (memory runs out at once or never).

    A batch's padded size, its number of samples times its longest, stays within batch_tokens; a sample that alone is
    longer makes its own batch.
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches


def _encode(formatter: Formatter, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Encoded]:
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses: give one prompt per response")
    return [formatter.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _fullest_prompt(encoded: list[Encoded]) -> int:
    """Row whose gate stands for the group: the first whose prompt's last token did not merge into the response."""
    return max(range(len(encoded)), key=lambda i: encoded[i].prompt_len)
