"""Attention of a forest in two calls of a variable-length flash kernel, merged by their log-sum-exps.

1. Every prefix and every branch attends to itself, causally.
2. The branches of each group, as one run of queries, attend to the group's prefix.

A branch's query has then seen its keys in two sets, and attention over both is the mean of the two outputs, weighted
by each set's sum of exponentials. The row is in the right order already (`samples/forest.py`), so nothing is gathered,
padded or masked.

Backward, both calls are given the merged output and the merged log-sum-exp. From these a kernel recomputes the
weights that its keys have among all keys, so the gradients of the two calls add up to the exact ones.

Notation: N tokens in the row, h heads, h_kv heads of keys and values, d head size.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends.cuda import SDPAParams, can_use_flash_attention

from openrlhf_gpm.samples.forest import Forest
from openrlhf_gpm.samples.runs import Runs

State = tuple[Tensor | None, ...]


class Kernels(Protocol):
    """Variable-length attention, forward and backward; a `scale` of None is 1 / sqrt(d)."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, runs: Runs, scale: float | None
    ) -> tuple[Tensor, Tensor, State]:
        """(N, h, d), twice (M, h_kv, d) -> (N, h, d), its log-sum-exp (h, N) in fp32, and what backward wants back."""
        ...

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        state: State,
        runs: Runs,
        scale: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value; out and lse may be of more keys than these."""
        ...


class TorchKernels:
    """torch's own flash attention, which is part of its CUDA builds. No soft cap, no sinks."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, runs: Runs, scale: float | None
    ) -> tuple[Tensor, Tensor, State]:
        out, lse, *state, _ = torch.ops.aten._flash_attention_forward(
            *(query, key, value, runs.queries, runs.keys, runs.longest_queries, runs.longest_keys),
            *(0.0, runs.causal, False),  # no dropout, no debug mask
            scale=scale,
        )
        return out, lse, tuple(state)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        state: State,
        runs: Runs,
        scale: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            *(grad, query, key, value, out, lse, runs.queries, runs.keys, runs.longest_queries, runs.longest_keys),
            *(0.0, runs.causal, *state),
            scale=scale,
        )
        return grads


def can_read(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether torch's kernels take these (1, heads, N, d): a GPU that they are for, half precision, d a multiple of 8.

    Where torch is told not to use flash attention, as by `torch.nn.attention.sdpa_kernel`, they take nothing.
    """
    if dropout or query.shape[-1] % 8:
        return False
    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, True, True))


def read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: Forest,
    scale: float | None = None,
    kernels: Kernels = TorchKernels(),  # noqa: B008 (it has no state)
) -> Tensor:
    """query (1, h, N, d), key and value (1, h_kv, N, d) -> (1, N, h, d)."""
    rows = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    out: Tensor = _TwoCalls.apply(*rows, forest, scale, kernels)
    return out.unsqueeze(0)


class _TwoCalls(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, forest: Forest, scale: float | None, kernels: Kernels
    ) -> Tensor:
        out, lse, own_state = kernels.forward(query, key, value, forest.own, scale)
        state: State = ()
        if forest.before is not None:
            prefix, seen = _places(forest.shared, forest.before)
            more, more_lse, state = kernels.forward(query[seen], key[prefix], value[prefix], forest.before, scale)
            both = torch.logaddexp(lse[:, seen], more_lse)
            weight, more_weight = ((part - both).exp_().mT.unsqueeze(-1) for part in (lse[:, seen], more_lse))
            out[seen] = out[seen] * weight + more * more_weight  # in fp32, which the weights are
            lse[:, seen] = both
        ctx.save_for_backward(query, key, value, out, lse, *own_state, *state)
        ctx.own_states = len(own_state)
        ctx.forest, ctx.scale, ctx.kernels = forest, scale, kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, *states = ctx.saved_tensors
        own_state, state = tuple(states[: ctx.own_states]), tuple(states[ctx.own_states :])
        forest, scale, kernels = ctx.forest, ctx.scale, ctx.kernels
        grad = grad.contiguous()
        dq, dk, dv = kernels.backward(grad, query, key, value, out, lse, own_state, forest.own, scale)
        if forest.before is not None:
            prefix, seen = _places(forest.shared, forest.before)
            more_q, more_k, more_v = kernels.backward(
                *(grad[seen], query[seen], key[prefix], value[prefix], out[seen], lse[:, seen].contiguous()),
                *(state, forest.before, scale),
            )
            dq[seen] += more_q
            dk[prefix] += more_k
            dv[prefix] += more_v
        return dq, dk, dv, None, None, None


def _places(shared: int, before: Runs) -> tuple[slice, slice]:
    """Where in the row the prefixes are, and the branches that see one."""
    return slice(shared), slice(shared, shared + before.tokens)
