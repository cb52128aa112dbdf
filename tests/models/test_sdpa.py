"""Attention over a forest against softmax written out token by token, and what happens where no forest arrives."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.attention.sdpa import FOREST_ATTENTION, sdpa_forest
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.samples.forest import collate_forest, sample_places
from openrlhf_gpm.samples.formatting import Encoded

GROUPS = [
    [Encoded([*range(20, 29), *own], 9) for own in ([60], [70, 71, 72], [80, 81])],
    [Encoded([*range(20, 23), *own], 3) for own in ([60, 61], [70] * 20)],
]
SENT = torch.ones(1, 1, 1, 1, dtype=torch.bool)


@pytest.mark.parametrize("heads_a_key", [1, 2, 4])
def test_every_token_sees_its_own_sample_up_to_itself(heads_a_key):
    forest = collate_forest(GROUPS)["forest"]
    N = forest.position_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, N, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(1, 4 // heads_a_key, N, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    module = SimpleNamespace(num_key_value_groups=heads_a_key, is_causal=True, training=False)
    got, weights = sdpa_forest(module, query, key, value, SENT, forest, scaling=0.3, dropout=0.0)
    assert got.shape == (1, N, 4, 8)
    assert weights is None
    for places in map(torch.cat, sample_places(GROUPS)):
        for n, place in enumerate(places.tolist()):
            seen = places[: n + 1]
            for head in range(4):
                scores = 0.3 * query[0, head, place] @ key[0, head // heads_a_key, seen].T
                expected = scores.softmax(-1) @ value[0, head // heads_a_key, seen]
                torch.testing.assert_close(got[0, place, head], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_without_a_forest_the_numbers_are_those_of_transformers(masked, keys):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 5, 8, generator=generator).double() for heads in (4, keys, keys))
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(3, 1, 5, 5) if masked else None
    module = SimpleNamespace(num_key_value_groups=4 // keys, is_causal=True, training=False)
    got, expected = (
        attend(module, query, key, value, mask, scaling=0.3)[0] for attend in (sdpa_forest, sdpa_attention_forward)
    )
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_a_forest_that_got_lost_is_an_error_and_never_wrong_numbers():
    forest = collate_forest(GROUPS)["forest"]
    x = torch.randn(1, 4, forest.position_ids.shape[1], 8)
    module = SimpleNamespace(is_causal=True)
    with pytest.raises(RuntimeError, match="SimpleNamespace did not receive the forest as it was sent"):
        sdpa_forest(module, x, x, x, SENT)
    for other in (None, torch.zeros(1, 4, 1, x.shape[2])):  # no mask, or one that the trunk made itself
        with pytest.raises(RuntimeError, match="SimpleNamespace did not receive the forest as it was sent"):
            sdpa_forest(module, x, x, x, other, forest)


def test_a_bias_by_places_in_the_row_is_an_error():
    forest = collate_forest(GROUPS)["forest"]
    x = torch.randn(1, 4, forest.position_ids.shape[1], 8)
    with pytest.raises(RuntimeError, match="SimpleNamespace adds a bias by places in the row"):
        sdpa_forest(SimpleNamespace(is_causal=True), x, x, x, SENT, forest, position_bias=x)


def test_where_no_cpu_is_transformers_reads_the_parts():
    """The meta device has shapes and no numbers; the test for a GPU compares these."""
    forest = collate_forest(GROUPS)["forest"].to("meta")
    N = forest.position_ids.shape[1]
    query, key = (torch.empty(1, heads, N, 8, device="meta") for heads in (4, 2))
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)
    out, _ = sdpa_forest(module, query, key, key, SENT, forest)
    assert (out.shape, out.device.type) == ((1, N, 4, 8), "meta")
    (masks,) = (part._masks for part in forest.parts if part.prefix_lens is not None)
    assert [(mask.dtype, mask.shape) for mask in masks.values()] == [(torch.bool, (5, 1, 20, 29))]


def test_a_sample_of_one_token_is_not_taken_for_a_forest():
    x = torch.randn(1, 4, 1, 8)
    out, _ = sdpa_forest(SimpleNamespace(is_causal=True), x, x, x, SENT)
    torch.testing.assert_close(out, x.transpose(1, 2))


@pytest.mark.parametrize("trunk", ["llama", "gpt_neox"])
def test_a_gpm_gets_the_attention_with_its_first_forest(new_config, trunk):
    def build(attention):
        config = new_config(trunk, attn_implementation=attention)
        config.gpm = GPMConfig(dim=6).to_dict()
        return gpm_class(config)(config).eval()

    sdpa, eager = build("sdpa"), build("eager")
    assert sdpa.config._attn_implementation == "sdpa"  # some trunks compare this name: left alone as long as possible
    v, _ = sdpa(**collate_forest(GROUPS))
    assert sdpa.config._attn_implementation == FOREST_ATTENTION
    sdpa.set_attn_implementation("sdpa")
    assert torch.equal(sdpa(**collate_forest(GROUPS))[0], v)
    with pytest.raises(ValueError, match=r"Model does not read forests: its attention \(eager\) is not the sdpa of"):
        eager(**collate_forest(GROUPS))


def test_a_sliding_window_that_would_cut_a_sample_is_an_error(new_gpm):
    model = new_gpm("gemma2")  # its window is 4 tokens
    assert collate_forest(GROUPS)["forest"].longest == 23
    with pytest.raises(RuntimeError, match="has a sliding window of 4 tokens, a sample has 23: encode in full"):
        model(**collate_forest(GROUPS))


def test_a_checkpoint_does_not_name_it(new_gpm, tmp_path):
    model = new_gpm()
    model(**collate_forest(GROUPS))
    model.save_pretrained(tmp_path)
    assert FOREST_ATTENTION not in (tmp_path / "config.json").read_text()
    assert "gpm" in json.loads((tmp_path / "config.json").read_text())
