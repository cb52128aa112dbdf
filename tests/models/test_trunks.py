"""Which trunks read forests, and that a backend encodes the others in full."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import group, one_by_one
from transformers import AutoModel, LlamaConfig, LlamaModel

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.models.trunks import forest_obstacle, sliding_window
from openrlhf_gpm.scoring.torch_backend import TorchBackend

IDS = st.integers(6, 319)


@st.composite
def groups(draw):
    prompt = draw(st.lists(IDS, min_size=1, max_size=30))
    responses = draw(st.lists(st.lists(IDS, min_size=1, max_size=12), min_size=1, max_size=5))
    shortest = len(prompt) + min(map(len, responses))
    lens = [draw(st.integers(1, min(shortest, len(prompt) + 2))) for _ in responses]
    return group(prompt, *responses, prompt_lens=lens)


@pytest.fixture(scope="module")
def gpm(new_gpm):
    return new_gpm()


@settings(max_examples=40, deadline=None)
@given(many=st.lists(groups(), min_size=1, max_size=5), batch_tokens=st.sampled_from([1, 40, 100_000]))
def test_the_backend_gives_the_same_with_and_without_sharing(gpm, many, batch_tokens):
    shared = TorchBackend(gpm, batch_tokens=batch_tokens, pad_token_id=2).embed_groups(many)
    full = TorchBackend(gpm, batch_tokens=batch_tokens, pad_token_id=2, share_prompt="off").embed_groups(many)
    for a, b, expected in zip(shared, full, one_by_one(gpm, many), strict=True):
        torch.testing.assert_close(a, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(b, expected, atol=1e-5, rtol=0)


# What is computed


def tokens_computed(model, backend, many):
    """Token positions that pass through the trunk's embedding layer, padding included."""
    seen = []
    handle = (
        getattr(model, model.base_model_prefix)
        .get_input_embeddings()
        .register_forward_hook(lambda _module, args, _output: seen.append(args[0].numel()))
    )
    backend.embed_groups(many)
    handle.remove()
    return sum(seen)


def test_the_prompt_is_computed_once_a_group(gpm):
    many = [
        group(range(20, 60), *([60 + i, 1] for i in range(8))),
        group(range(120, 160), *([i, 1] for i in range(60, 68))),
    ]
    assert tokens_computed(gpm, TorchBackend(gpm, pad_token_id=2), many) == 2 * (40 + 8 * 2)
    assert tokens_computed(gpm, TorchBackend(gpm, pad_token_id=2, share_prompt="off"), many) == 2 * 8 * 42


# Trunks that do not allow it


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
PER_LAYER_TYPE = {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}


@pytest.mark.parametrize(
    ("trunk", "changes", "reason"),
    [
        ("llama", {"rope_parameters": DYNAMIC}, "rotary embedding (dynamic)"),
        ("gemma3_text", {"rope_parameters": PER_LAYER_TYPE}, "rotary embedding (dynamic)"),
        ("bert", {}, "looks ahead"),
        ("llama4_text", {"attention_chunk_size": 8, "head_dim": 8}, "(chunked_attention)"),
        ("mamba", {}, "(linear_attention)"),
        ("falcon_h1", {}, "(hybrid)"),
        ("recurrent_gemma", {"lru_width": 32}, "recurrent"),
        ("bloom", {"n_head": 4}, "(eager) is not the sdpa"),
        ("falcon", {}, "(sdpa) is not the sdpa or flash attention of transformers' Att"),
        (
            "jetmoe",
            {"num_local_experts": 2, "kv_channels": 8},
            "cannot be checked without weights (NotImplementedError",
        ),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("gptj", {"rotary_dim": 4}, "(eager) is not the sdpa"),
        ("gpt_neo", {"num_layers": 2, "attention_types": [[["global"], 2]]}, "is not the sdpa"),
        ("stablelm", {}, "does not hand the forest on"),  # takes keyword arguments and drops them
        ("doge", {}, "does not hand the forest on"),  # makes a mask of its own
        ("llama", {"attn_implementation": "eager"}, "(eager) is not the sdpa"),
        ("gemma2", {"attn_implementation": "flash_attention_2"}, "flash attention has a soft cap"),
        ("gpt_oss", {"attn_implementation": "flash_attention_3"}, "flash attention has attention sinks"),
        ("bert", {"attn_implementation": "flash_attention_2"}, "looks ahead"),
        ("falcon", {"attn_implementation": "flash_attention_2"}, "(flash_attention_2) is not the sdpa or flash"),
        ("stablelm", {"attn_implementation": "flash_attention_2"}, "does not hand the forest on"),
        ("llama", {"attn_implementation": "flash_attention_2"}, None),
        ("gemma2", {"attn_implementation": "flash_attention_2", "attn_logit_softcapping": None}, None),
        ("gemma", {"attn_implementation": "flash_attention_2", "head_dim": 256}, None),
        ("gpt_neox", {"attn_implementation": "flash_attention_2"}, None),
        ("llama", {}, None),
        ("gpt2", {}, None),
        ("gemma2", {}, None),
        ("gemma3_text", {}, None),
        ("mistral", {}, None),
        ("mixtral", {}, None),
        ("gemma3", {}, None),  # its tower for images looks ahead, the trunk does not
    ],
)
def test_what_keeps_a_trunk_from_sharing_is_known(new_config, trunk, changes, reason):
    config = new_config(trunk, **changes)
    before = config.to_dict(), config._attn_implementation
    obstacle = forest_obstacle(config)
    if reason is None:
        assert obstacle is None
    else:
        assert reason in str(obstacle)
    assert (config.to_dict(), config._attn_implementation) == before


def test_a_trunk_of_others_that_takes_no_positions_does_not_share(new_config):
    class CountingConfig(LlamaConfig):
        model_type = "counting"

    class CountingModel(LlamaModel):
        """Counts positions itself, as trunks that are not part of transformers may."""

        config_class = CountingConfig

        def forward(self, input_ids, attention_mask=None, use_cache=None, **_):
            return super().forward(input_ids, attention_mask=attention_mask, use_cache=use_cache)

    AutoModel.register(CountingConfig, CountingModel)
    assert forest_obstacle(CountingConfig(**new_config().to_dict())) == "its forward does not take position_ids"


def test_such_a_trunk_is_encoded_in_full_and_that_is_said_once(new_config, caplog):
    config = new_config(rope_parameters=DYNAMIC, max_position_embeddings=16)
    config.gpm = GPMConfig(dim=6).to_dict()
    torch.manual_seed(0)
    model = gpm_class(config)(config).eval()
    many = [group(range(20, 50), [60], [61], [62])]
    with caplog.at_level(logging.WARNING):
        backend = TorchBackend(model, pad_token_id=2)
        for _ in range(2):
            v, _ = backend.embed_groups(many)
    assert [record.message for record in caplog.records] == [
        "prompts are not shared between responses: its rotary embedding (dynamic) depends on the length of the whole "
        "sample"
    ]
    torch.testing.assert_close(v, one_by_one(model, many)[0], atol=1e-5, rtol=0)


def test_samples_longer_than_a_sliding_window_are_encoded_in_full(new_gpm):
    model = new_gpm("gemma2")
    assert sliding_window(model.config) == 4
    assert sliding_window(new_gpm("llama").config) is None
    backend = TorchBackend(model, pad_token_id=2)
    short, long = group([30, 31], [40, 41], [42]), group([30, 31, 32], [40, 41], [42])
    assert tokens_computed(model, backend, [short]) == 5
    assert tokens_computed(model, backend, [long]) == 2 * 5
    for got, expected in zip(backend.embed_groups([long, short]), one_by_one(model, [long, short]), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_wrong_settings_name_their_flag(gpm):
    with pytest.raises(ValueError, match="--share_prompt must be one of auto, off; got 'on'"):
        TorchBackend(gpm, share_prompt="on")
    with pytest.raises(ValueError, match="--batch_tokens must be >= 1, got 0"):
        TorchBackend(gpm, batch_tokens=0)
