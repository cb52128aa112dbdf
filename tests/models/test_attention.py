"""Attention that reads shared heads in place, against transformers' own."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from openrlhf_gpm.models.attention import NAME, sdpa_shared_heads, share_heads
from openrlhf_gpm.models.backend import TorchBackend, embed_encoded
from openrlhf_gpm.models.formatting import Encoded

PROMPT = list(range(20, 50))
GROUPS = [
    [Encoded([*PROMPT, *own], 30) for own in ([60], [70, 71, 72], [80, 81])],
    [Encoded([*PROMPT[:9], *own], 9) for own in ([60, 61], [70])],
]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_the_numbers_are_those_of_transformers(groups, masked):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 5, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(3, 4 // groups, 9, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    if masked:
        mask = torch.rand(3, 1, 5, 9, generator=generator) < 0.7
        mask[..., 0] = True  # every query sees something
    else:
        mask, key, value = None, key[:, :, :5], value[:, :, :5]
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True, training=False)
    got, expected = (
        attend(module, query, key, value, mask, scaling=0.3, dropout=0.0)[0]
        for attend in (sdpa_shared_heads, sdpa_attention_forward)
    )
    assert got.shape == (3, 5, 4, 8)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("trunk", "changes", "reads_in_place"),
    [
        ("llama", {}, True),
        ("qwen2", {}, True),
        ("mistral", {"sliding_window": None}, True),
        ("llama", {"num_key_value_heads": 4}, False),  # every query head has its own keys
        ("gpt_neox", {}, False),
    ],
)
def test_a_backend_on_a_cpu_uses_it_where_heads_are_shared(new_config, trunk, changes, reads_in_place):
    from openrlhf_gpm.models.config import GPMConfig
    from openrlhf_gpm.models.gpm import gpm_class

    config = new_config(trunk, **changes)
    config.gpm = GPMConfig(dim=6).to_dict()
    torch.manual_seed(0)
    model = gpm_class(config)(config).eval()
    assert model.config._attn_implementation == "sdpa"
    expected = torch.cat([embed_encoded(model, [e], 2, "cpu")[0] for group in GROUPS for e in group])
    backend = TorchBackend(model, pad_token_id=2)
    assert (model.config._attn_implementation == NAME) is reads_in_place
    torch.testing.assert_close(backend.embed_groups(GROUPS)[0], expected, atol=1e-5, rtol=0)


def test_what_was_chosen_on_purpose_stays(new_gpm):
    eager = new_gpm()
    eager.set_attn_implementation("eager")
    share_heads(eager)
    assert eager.config._attn_implementation == "eager"
    off = new_gpm()
    TorchBackend(off, share_prompt="off")
    assert off.config._attn_implementation == "sdpa"


def test_a_checkpoint_does_not_name_it(new_gpm, tmp_path):
    model = new_gpm()
    TorchBackend(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert "gpm" in json.loads((tmp_path / "config.json").read_text())
