"""Attention over a forest in two calls and a merge. Slow kernels in plain torch do the calls where there is no GPU."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import group
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from openrlhf_gpm.models.attention import flash, sdpa
from openrlhf_gpm.models.attention.choose import FORESTS
from openrlhf_gpm.models.inputs import forest_inputs
from openrlhf_gpm.samples.forest import collate_forest, sample_places

SHAPES = {
    "ragged": [group(range(20, 29), [60], [70, 71, 72], [80] * 20), group([30, 31], [60, 61], [61] * 7)],
    "even": [group([20 + g, 21, 22], [60, 61], [62, 63]) for g in range(3)],
    "a group of one": [group([30, 31, 32], [61, 62]), group([40, 41], [61], [62])],
    "one sample": [group([30, 31, 32], [61, 62])],
    "no prefix in the first group": [group([], [60, 61], [61]), group([30, 31], [60], [61])],
    "no prefix between two": [group([30, 31], [60], [61]), group([], [60, 61], [61]), group([32], [60] * 3, [61])],
    "no prefix at all": [group([], [60, 61, 62], [61]), group([], [63], [64])],
    "one token": [group([], [60])],
}
HEADS = 4


class SlowKernels:
    """Run by run, with the weights written out; backward from the output and log-sum-exp that it is given."""

    def _runs(self, runs):
        for lengths in (runs.queries.diff(), runs.keys.diff()):
            assert lengths.min() > 0  # a real kernel's log-sum-exp over no keys is +inf, and the merge would be nan
        for name in ("queries", "keys"):
            assert getattr(runs, name).diff().max() == getattr(runs, f"longest_{name}")
        assert runs.queries[-1] == runs.tokens
        bounds = (pairwise(ends.tolist()) for ends in (runs.queries, runs.keys))
        return [(slice(*n), slice(*m)) for n, m in zip(*bounds, strict=True)]

    def _scores(self, query, key, runs, scale):
        """(n, h, d), (m, h_kv, d) -> (h, n, m), -inf where a query does not see a key."""
        scores = scale * torch.einsum("nhd,mhd->hnm", query, self._repeat(key, query))
        sees = torch.ones(scores.shape[1:], dtype=torch.bool)
        return scores.masked_fill(~(sees.tril() if runs.causal else sees), -torch.inf)

    def _repeat(self, key, query):
        return key.repeat_interleave(query.shape[1] // key.shape[1], 1)

    def forward(self, query, key, value, runs, scale):
        assert len(query) == runs.tokens
        out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
        for n, m in self._runs(runs):
            scores = self._scores(query[n], key[m], runs, scale)
            lse[:, n] = scores.logsumexp(-1)
            out[n] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), self._repeat(value[m], query))
        return out, lse, (torch.tensor(len(key)), None)

    def backward(self, grad, query, key, value, out, lse, state, runs, scale):
        assert state[0] == len(key)  # what forward returned for this call, not for the other
        dq, dk, dv = map(torch.zeros_like, (query, key, value))
        heads = (key.shape[1], -1)
        for n, m in self._runs(runs):
            weights = (self._scores(query[n], key[m], runs, scale) - lse[:, n, None]).exp()
            of_weights = torch.einsum("nhd,mhd->hnm", grad[n], self._repeat(value[m], query))
            of_scores = weights * (of_weights - (grad[n] * out[n]).sum(-1).T[..., None]) * scale
            dq[n] = torch.einsum("hnm,mhd->nhd", of_scores, self._repeat(key[m], query))
            dk[m] = torch.einsum("hnm,nhd->mhd", of_scores, query[n]).unflatten(1, heads).sum(2)
            dv[m] = torch.einsum("hnm,nhd->mhd", weights, grad[n]).unflatten(1, heads).sum(2)
        return dq, dk, dv


def inputs(forest, heads_a_key=2, d=8, **kind):
    """Query, key and value (1, heads, N, d), laid out as a trunk's projections are: token after token."""
    generator = torch.Generator().manual_seed(0)
    N = forest.position_ids.shape[1]
    sizes = (HEADS, HEADS // heads_a_key, HEADS // heads_a_key)
    return [
        torch.randn(1, N, n, d, generator=generator, dtype=torch.float64).to(**kind).transpose(1, 2) for n in sizes
    ]


def test_with_equal_scores_an_output_is_the_mean_of_the_values_seen():
    """Prefix values 1 and 3; the branches' are 8, and 2 then 4."""
    forest = collate_forest([group([20, 21], [60], [61, 62])])["forest"]
    value = torch.tensor([1.0, 3, 8, 2, 4]).view(1, 1, 5, 1)
    out = flash.read(torch.zeros_like(value), torch.ones_like(value), value, forest, 1.0, SlowKernels())
    torch.testing.assert_close(out.flatten(), torch.tensor([1, 2, 4, 2, 2.5]))


@pytest.mark.parametrize("heads_a_key", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_token_sees_its_own_sample_up_to_itself(shape, heads_a_key):
    forest = collate_forest(SHAPES[shape])["forest"]
    query, key, value = inputs(forest, heads_a_key)
    got = flash.read(query, key, value, forest, 0.3, SlowKernels())
    assert got.shape == (1, query.shape[2], HEADS, 8)
    for places in map(torch.cat, sample_places(SHAPES[shape])):
        for n, place in enumerate(places.tolist()):
            seen = places[: n + 1]
            for head in range(HEADS):
                scores = 0.3 * query[0, head, place] @ key[0, head // heads_a_key, seen].T
                expected = scores.softmax(-1) @ value[0, head // heads_a_key, seen]
                torch.testing.assert_close(got[0, place, head], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_of_the_merge_are_exact(shape):
    forest = collate_forest(SHAPES[shape])["forest"]
    leaves = [x.requires_grad_() for x in inputs(forest, d=4)]
    assert torch.autograd.gradcheck(lambda *qkv: flash.read(*qkv, forest, 0.3, SlowKernels()), leaves, fast_mode=True)


def results(read, leaves):
    """The output, and the gradients of a sum that weighs its numbers unequally."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = read(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


class Module(torch.nn.Module):
    """What attention asks of the layer that it belongs to."""

    is_causal, num_key_value_groups = True, 2


TREES = st.tuples(st.integers(0, 12), st.lists(st.integers(1, 12), min_size=1, max_size=4))


@settings(max_examples=40, deadline=None)
@given(st.lists(TREES, min_size=1, max_size=5))
def test_parts_and_two_calls_are_the_same_function(shapes):
    many = [group([5] * S, *([i] * n for i, n in enumerate(own, start=10))) for S, own in shapes]
    forest = collate_forest(many)["forest"]
    leaves = inputs(forest)
    by_calls = results(lambda *qkv: flash.read(*qkv, forest, 0.3, SlowKernels()), leaves)
    by_parts = results(lambda *qkv: sdpa.read(Module().eval(), *qkv, forest, scaling=0.3), leaves)
    for got, expected in zip(by_calls, by_parts, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


# In a trunk


def slow_forest(module, query, key, value, attention_mask, forest, scaling=None, **_):
    return flash.read(query, key, value, forest, scaling, SlowKernels()), None


AttentionInterface.register("slow_two_calls", slow_forest)
AttentionMaskInterface.register("slow_two_calls", sdpa_mask)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trunk", ["llama", "gpt_neox", "qwen3", "gemma3_text"])
def test_a_trunk_reads_the_same_in_two_calls_as_in_parts(new_gpm, trunk, checkpointing):
    gpm = new_gpm(trunk, gate="none").double()
    model = getattr(gpm, gpm.base_model_prefix)
    if checkpointing:  # the forward pass runs again in the backward pass
        gpm.gradient_checkpointing_enable()
        gpm.train()
    batch = forest_inputs(**collate_forest([*SHAPES["ragged"], *SHAPES["no prefix between two"]])).inputs

    def run(attention):
        model.set_attn_implementation(attention)
        gpm.zero_grad()
        hidden = model(**batch, use_cache=False).last_hidden_state
        hidden.square().sum().backward()
        return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    for got, expected in zip(run("slow_two_calls"), run(FORESTS["sdpa"]), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9 * expected.abs().max().item(), rtol=0)


# On a GPU


def test_nothing_but_a_gpu_has_the_kernels():
    forest = collate_forest(SHAPES["even"])["forest"]
    for device in ("cpu", "meta"):
        assert not flash.can_read(*inputs(forest, dtype=torch.bfloat16, device=device), 0.0)


def test_the_kernels_of_torch_are_called_as_it_defines_them():
    """The meta device has their shapes, and no numbers."""
    forest = collate_forest(SHAPES["ragged"])["forest"].to("meta")
    leaves = [x.requires_grad_() for x in inputs(forest, dtype=torch.bfloat16, device="meta")]
    out = flash.read(*leaves, forest, 0.3)
    assert (out.shape, out.dtype) == ((1, leaves[0].shape[2], HEADS, 8), torch.bfloat16)
    for gradient, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("heads_a_key", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_of_torch_are_as_near_to_fp64_as_full_precision_parts_in_bf16(shape, heads_a_key, d):
    forest = collate_forest(SHAPES[shape])["forest"]
    exact = inputs(forest, heads_a_key, d, dtype=torch.bfloat16)
    exact = [x.double() for x in exact]  # the rounded numbers
    expected = results(lambda *qkv: flash.read(*qkv, forest, d**-0.5, SlowKernels()), exact)
    leaves = [x.to("cuda", torch.bfloat16) for x in exact]
    forest = forest.to("cuda")
    assert flash.can_read(*leaves, 0.0)
    got = results(lambda *qkv: flash.read(*qkv, forest, d**-0.5), leaves)

    def rms(x):
        return x.square().mean().sqrt()

    # The output is rounded to 2^-8 before the gradients are taken from it; those of queries and keys are differences.
    rounding = 2**-8 * max(map(rms, expected))
    for mine, want in zip(got, expected, strict=True):
        assert rms(mine.double().cpu() - want) <= 2e-2 * rms(want) + rounding
