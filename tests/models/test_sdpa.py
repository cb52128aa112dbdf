"""Attention over a forest part by part, against softmax written out token by token."""

from types import SimpleNamespace

import pytest
import torch

from openrlhf_gpm.models.attention import sdpa
from openrlhf_gpm.samples.forest import collate_forest, sample_places
from openrlhf_gpm.samples.formatting import Encoded

GROUPS = [
    [Encoded([*range(20, 29), *own], 9) for own in ([60], [70, 71, 72], [80, 81])],
    [Encoded([*range(20, 23), *own], 3) for own in ([60, 61], [70] * 20)],
]


@pytest.mark.parametrize("heads_a_key", [1, 2, 4])
def test_every_token_sees_its_own_sample_up_to_itself(heads_a_key):
    forest = collate_forest(GROUPS)["forest"]
    N = forest.position_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, N, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(1, 4 // heads_a_key, N, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    module = SimpleNamespace(num_key_value_groups=heads_a_key, is_causal=True, training=False)
    got = sdpa.read(module, query, key, value, forest, scaling=0.3, dropout=0.0)
    assert got.shape == (1, N, 4, 8)
    for places in map(torch.cat, sample_places(GROUPS)):
        for n, place in enumerate(places.tolist()):
            seen = places[: n + 1]
            for head in range(4):
                scores = 0.3 * query[0, head, place] @ key[0, head // heads_a_key, seen].T
                expected = scores.softmax(-1) @ value[0, head // heads_a_key, seen]
                torch.testing.assert_close(got[0, place, head], expected, atol=1e-12, rtol=0)


def test_where_no_cpu_is_transformers_reads_the_parts():
    """The meta device has shapes and no numbers; the test for a GPU compares these."""
    forest = collate_forest(GROUPS)["forest"].to("meta")
    N = forest.position_ids.shape[1]
    query, key = (torch.empty(1, heads, N, 8, device="meta") for heads in (4, 2))
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)
    out = sdpa.read(module, query, key, key, forest)
    assert (out.shape, out.device.type) == ((1, N, 4, 8), "meta")
    (masks,) = (part._masks for part in forest.parts if part.prefix_lens is not None)
    assert [(mask.dtype, mask.shape) for mask in masks.values()] == [(torch.bool, (5, 1, 20, 29))]
