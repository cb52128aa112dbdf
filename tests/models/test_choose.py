"""The attention that a trunk gets for forests: which kernel reads one, and what happens where no forest arrives."""

import json
from types import SimpleNamespace

import pytest
import torch
from sample_groups import group
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.attention.choose import FORESTS, Renamed, read_forest
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.samples.batch import collate
from openrlhf_gpm.samples.forest import collate_forest
from openrlhf_gpm.samples.formatting import Encoded

GROUPS = [
    [Encoded([*range(20, 29), *own], 9) for own in ([60], [70, 71, 72], [80, 81])],
    [Encoded([*range(20, 23), *own], 3) for own in ([60, 61], [70] * 20)],
]
SENT = torch.ones(1, 1, 1, 1, dtype=torch.bool)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_without_a_forest_the_numbers_are_those_of_transformers(masked, keys):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 5, 8, generator=generator).double() for heads in (4, keys, keys))
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(3, 1, 5, 5) if masked else None
    module = SimpleNamespace(num_key_value_groups=4 // keys, is_causal=True, training=False)
    got, expected = (
        attend(module, query, key, value, mask, scaling=0.3)[0] for attend in (read_forest, sdpa_attention_forward)
    )
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_a_forest_that_got_lost_is_an_error_and_never_wrong_numbers():
    forest = collate_forest(GROUPS)["forest"]
    x = torch.randn(1, 4, forest.position_ids.shape[1], 8)
    module = SimpleNamespace(is_causal=True)
    with pytest.raises(RuntimeError, match="SimpleNamespace did not receive the forest as it was sent"):
        read_forest(module, x, x, x, SENT)
    for other in (None, torch.zeros(1, 4, 1, x.shape[2])):  # no mask, or one that the trunk made itself
        with pytest.raises(RuntimeError, match="SimpleNamespace did not receive the forest as it was sent"):
            read_forest(module, x, x, x, other, forest)


def test_a_bias_by_places_in_the_row_is_an_error():
    forest = collate_forest(GROUPS)["forest"]
    x = torch.randn(1, 4, forest.position_ids.shape[1], 8)
    with pytest.raises(RuntimeError, match="SimpleNamespace adds a bias by places in the row"):
        read_forest(SimpleNamespace(is_causal=True), x, x, x, SENT, forest, position_bias=x)


def test_a_sample_of_one_token_is_not_taken_for_a_forest():
    x = torch.randn(1, 4, 1, 8)
    out, _ = read_forest(SimpleNamespace(is_causal=True), x, x, x, SENT)
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
    assert sdpa.config._attn_implementation == FORESTS["sdpa"]
    sdpa.set_attn_implementation("sdpa")
    assert torch.equal(sdpa(**collate_forest(GROUPS))[0], v)
    with pytest.raises(ValueError, match=r"Model does not read forests: its attention \(eager\) is not the sdpa"):
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
    assert FORESTS["sdpa"] not in (tmp_path / "config.json").read_text()
    assert "gpm" in json.loads((tmp_path / "config.json").read_text())


# Flash attention, whose package needs a GPU


def test_transformers_flash_attention_is_called_by_its_own_name():
    """Our name for it is in the config, and transformers would look for a package of that name."""
    config = SimpleNamespace(_attn_implementation="fa2_forest", hidden_size=32)
    seen = Renamed(config, _attn_implementation="flash_attention_2")
    assert (seen._attn_implementation, seen.hidden_size, hasattr(seen, "_is_quantized")) == (
        "flash_attention_2",
        32,
        False,
    )


@pytest.mark.parametrize("attention", [name for name in FORESTS if name != "sdpa"])
def test_a_trunk_of_flash_attention_keeps_its_masks_and_reads_forests(new_gpm, attention):
    """A trunk with flash attention cannot be built on a CPU, so it gets the name that it would have afterwards."""
    model = new_gpm()
    v, gate = model(**collate_forest(GROUPS))
    model.set_attn_implementation(FORESTS[attention])
    again = model(**collate_forest(GROUPS))  # parts: no kernel here
    assert torch.equal(again[0], v)
    assert torch.equal(again[1], gate)
    mask = ALL_MASK_ATTENTION_FUNCTIONS[FORESTS[attention]]
    assert mask is ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"]


def gpu_model(new_config, attention):
    config = new_config(head_dim=32, attn_implementation=attention)
    config.gpm = GPMConfig(dim=6).to_dict()
    torch.manual_seed(0)
    return gpm_class(config, packing_samples=attention != "sdpa")(config).to("cuda", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_on_a_gpu_a_forest_of_bf16_is_read_in_two_calls_and_gives_what_full_encoding_gives(new_config, attention):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = gpu_model(new_config, attention).eval()
    want = gpu_model(new_config, "sdpa").float().eval()
    samples = [sample for members in GROUPS for sample in members]
    with torch.no_grad(), torch.profiler.profile() as profile:
        v, _ = model(**{name: x.to("cuda") for name, x in collate_forest(GROUPS).items()})
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::_flash_attention_forward"] == 2 * model.config.num_hidden_layers
    with torch.no_grad():
        full, _ = model(**{name: x.to("cuda") for name, x in collate(samples, 2).items()})
        exact, _ = want(**{name: x.to("cuda") for name, x in collate(samples, 2).items()})
    assert model.config._attn_implementation == FORESTS[attention]
    error, of_full = (v - exact).square().mean().sqrt(), (full - exact).square().mean().sqrt()
    assert error <= 1.5 * of_full  # sharing costs no accuracy


@pytest.mark.gpu
def test_on_a_gpu_the_gradients_of_bf16_are_as_near_to_fp32_as_those_of_full_encoding(new_config):
    many = [group(list(range(20, 84)) * 8, *([60 + i] * 16 for i in range(8))) for _ in range(2)]
    samples = [sample for members in many for sample in members]

    def gradients(model, batch):
        model.train()
        v, _ = model(**{name: x.to("cuda") for name, x in batch.items()})
        (v @ torch.arange(1.0, 7.0, device="cuda")).sum().backward()
        return torch.cat([p.grad.flatten().float() for name, p in model.named_parameters() if p.grad is not None])

    exact = gradients(gpu_model(new_config, "sdpa").float(), collate(samples, 2))
    shared = gradients(gpu_model(new_config, "sdpa"), collate_forest(many))
    full = gradients(gpu_model(new_config, "sdpa"), collate(samples, 2))
    assert (shared - exact).norm() <= 1.5 * (full - exact).norm()
