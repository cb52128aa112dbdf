import math

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.core import group_scores, preference_loss, preference_score
from openrlhf_gpm.models.gpm import Fp32Linear, gpm_class, make_gpm_class, scale_gate

TRUNKS = ["llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox"]
LENGTHS = [5, 12, 2, 9]
PROMPTS = torch.tensor([3, 7, 1, 9])  # the last sample has no response


def samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 320, (length,), generator=generator) for length in LENGTHS]


def padded(rows, side):
    return (
        pad_sequence(rows, batch_first=True, padding_value=2, padding_side=side),
        pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side),
    )


def one_by_one(model, rows, prompt_lens=PROMPTS):
    """Each sample alone and without padding: the slow reference."""
    outs = [model(row[None], None, prompt_lens[i : i + 1]) for i, row in enumerate(rows)]
    return torch.cat([v for v, _ in outs]), torch.cat([gate for _, gate in outs])


@pytest.mark.parametrize("kind", ["softmax", "softmax_scaled", "softplus", "none"])
def test_gate_formulas_by_hand(kind):
    z, hidden = torch.tensor([[0.0, math.log(3.0) * 4, 0.0]]), 16
    e = math.exp(math.log(3.0) * 4)  # 81
    expected = {
        "softmax": [1 / 83, 81 / 83, 1 / 83],
        "softmax_scaled": [3 / 5, 9 / 5, 3 / 5],  # z / sqrt(16) = (0, ln 3, 0)
        "softplus": [math.log(2), math.log(1 + e), math.log(2)],
        "none": [1.0, 1.0, 1.0],
    }
    torch.testing.assert_close(scale_gate(z, kind, hidden), torch.tensor([expected[kind]]))


def test_an_unknown_gate_is_an_error():
    with pytest.raises(ValueError, match=r"--gpm\.gate"):
        scale_gate(torch.zeros(1, 2), "sigmoid", 8)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sample_has_the_same_embedding_and_gate_under_any_padding_and_packing(new_gpm, trunk, packing, side):
    rows = samples()
    v, gate = one_by_one(new_gpm(trunk), rows)
    got_v, got_gate = new_gpm(trunk, packing_samples=packing)(*padded(rows, side), PROMPTS)
    torch.testing.assert_close(got_v, v, atol=1e-5, rtol=0)
    torch.testing.assert_close(got_gate, gate, atol=1e-5, rtol=0)
    assert v.shape == (4, 6)
    assert gate.shape == (4, 3)
    assert (gate - gate[0]).abs().max() > 1e-3, "a gate that is constant proves nothing"


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_embedding_is_the_head_on_the_last_token_and_the_gate_on_the_last_prompt_token(new_gpm, trunk):
    """The explicit formula, from the hidden states of one sample without padding."""
    model = new_gpm(trunk)
    row = samples()[1][None]
    v, gate, outputs = model(row, None, torch.tensor([7]), return_output=True)
    hidden = outputs.last_hidden_state[0]
    head = model.score.weight @ hidden[-1]
    z = model.gate.weight @ hidden[6] / math.sqrt(32)
    torch.testing.assert_close(v[0], head / head.norm())
    torch.testing.assert_close(gate[0], 3 * z.exp() / z.exp().sum())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_head_may_read_the_mean_over_the_response(new_gpm, trunk):
    """The explicit formula, from the hidden states of one sample without padding."""
    model = new_gpm(trunk, pool="mean", normalize=False)
    row = samples()[1][None]
    v, _, outputs = model(row, None, torch.tensor([7]), return_output=True)
    hidden = outputs.last_hidden_state[0]
    torch.testing.assert_close(v[0], model.score.weight @ (sum(hidden[7:]) / 5))
    assert (v[0] - model.score.weight @ hidden[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mean_over_the_response_is_the_same_under_any_padding_and_packing(new_gpm, packing, side):
    rows, prompt_lens = samples(), torch.tensor([3, 7, 1, 8])
    v, _ = one_by_one(new_gpm(pool="mean"), rows, prompt_lens)
    got, _ = new_gpm(pool="mean", packing_samples=packing)(*padded(rows, side), prompt_lens)
    torch.testing.assert_close(got, v, atol=1e-5, rtol=0)


def test_the_gate_does_not_see_the_response(new_gpm):
    model = new_gpm()
    row = samples()[1]
    changed = row.clone()
    changed[7:] = row[7:].flip(0)
    v, gate = one_by_one(model, [row, changed], torch.tensor([7, 7]))
    torch.testing.assert_close(gate[0], gate[1], atol=1e-6, rtol=0)
    assert (v[0] - v[1]).abs().max() > 1e-3
    changed[6] = 3 + (row[6] - 2) % 317  # the last prompt token
    assert (one_by_one(model, [row, changed], torch.tensor([7, 7]))[1].diff(dim=0)).abs().max() > 1e-3


def test_a_sample_does_not_see_its_neighbours_in_a_pack(new_gpm):
    model = new_gpm(packing_samples=True)
    rows, others = samples(), samples(seed=1)
    mixed = [others[0], rows[1], others[2], others[3]]
    v, gate = model(*padded(rows, "left"), PROMPTS)
    mixed_v, mixed_gate = model(*padded(mixed, "left"), PROMPTS)
    torch.testing.assert_close(v[1], mixed_v[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(gate[1], mixed_gate[1], atol=1e-6, rtol=0)
    assert (v[0] - mixed_v[0]).abs().max() > 1e-3


def test_embeddings_have_length_one_by_default(new_gpm):
    rows = samples()
    unit, raw = new_gpm(), new_gpm(normalize=False)
    v, _ = one_by_one(unit, rows)
    v_raw, _ = one_by_one(raw, rows)
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(v_raw / v_raw.norm(dim=-1, keepdim=True), v)
    assert (v_raw.norm(dim=-1) - 1).abs().min() > 1e-3


def test_without_a_gate_there_are_no_gate_weights_and_prompt_lens_are_not_needed(new_gpm):
    model = new_gpm(gate="none")
    assert not any("gate" in name for name, _ in model.named_parameters() if "mlp" not in name)
    v, gate = model(*padded(samples(), "left"))
    assert torch.equal(gate, torch.ones(4, 3))
    assert v.shape == (4, 6)


def test_head_gate_and_norm_run_in_fp32_under_a_bf16_trunk(new_gpm):
    model = new_gpm().bfloat16()
    v, gate, outputs = model(*padded(samples(), "left"), PROMPTS, return_output=True)
    assert outputs.last_hidden_state.dtype == torch.bfloat16
    assert v.dtype == gate.dtype == torch.float32
    expected = outputs.last_hidden_state[:, -1].float() @ model.score.weight.float().T  # left padding: the last column
    torch.testing.assert_close(v, expected / expected.norm(dim=-1, keepdim=True), atol=1e-6, rtol=1e-6)


def test_the_head_stays_in_fp32_under_autocast():
    layer, x = Fp32Linear(64, 4, init_std=1.0), torch.randn(8, 64)
    expected = x @ layer.weight.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.linear(x, layer.weight).dtype == torch.bfloat16
        assert torch.equal(layer(x), expected)


def test_a_new_gate_makes_every_plane_equally_strong_and_a_new_head_is_small(new_config):
    torch.manual_seed(0)
    config = new_config(hidden_size=64)
    config.gpm = GPMConfig(dim=32).to_dict()
    model = gpm_class(config)(config).eval()
    _, gate = model(*padded(samples(), "left"), PROMPTS)
    assert torch.equal(gate, torch.ones(4, 16))
    assert model.score.weight.std().item() == pytest.approx(1 / 65, rel=0.1)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointing", "reentrant"])
def test_gradients_reach_head_gate_and_trunk(new_gpm, packing, checkpointing):
    model = new_gpm(packing_samples=packing, tau=1.0).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    rows = samples()
    rows[1][:3] = rows[0][:3]  # a pair with one prompt
    v, gate = model(*padded(rows, "right"), torch.tensor([3, 3, 1, 9]))
    preference_loss(preference_score(v[0], v[1], gate[0])[None]).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    for name in ("score.weight", "gate.weight", "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        assert grads[name].abs().max() > 0, name


def test_gradient_checkpointing_changes_no_gradient(new_gpm):
    def gradient(checkpointing):
        model = new_gpm(tau=1.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        v, gate = model(*padded(samples(), "left"), PROMPTS)
        group_scores(v, gate)[0].square().sum().backward()
        return model.model.layers[0].mlp.up_proj.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_training_learns_a_cycle_that_no_reward_can_express(new_gpm):
    """rock > paper > scissors > rock, as three one-token responses.

    Two planes: in one plane a start in the wrong order stops where all three embeddings are equal, a saddle point.
    """
    model = new_gpm(dim=4, gate="none", tau=0.2).train()
    ids = torch.tensor([[5, 10], [5, 11], [5, 12]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        v, _ = model(ids)
        loss = preference_loss(preference_score(v, v.roll(-1, 0), tau=0.2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    v, _ = model(ids)
    assert (preference_score(v, v.roll(-1, 0), tau=0.2) > 1).all()


def test_the_class_is_named_after_its_trunk_and_made_once(new_config):
    from transformers import LlamaForCausalLM, LlamaModel
    from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

    made = make_gpm_class(LlamaPreTrainedModel, LlamaModel)
    assert made.__name__ == "LlamaForSequenceClassification"
    assert issubclass(made, LlamaPreTrainedModel)
    assert not issubclass(made, LlamaForCausalLM)
    assert made.supports_gradient_checkpointing
    config = new_config("gpt_neox")
    assert gpm_class(config).__name__ == "GPTNeoXForSequenceClassification"
    assert gpm_class(config) is gpm_class(config)


def test_what_transformers_cannot_build_is_an_error():
    from transformers import PretrainedConfig

    with pytest.raises(ValueError, match="no trunk for model type ''"):
        gpm_class(PretrainedConfig())


def test_wrong_lengths_are_named_by_sample(new_gpm):
    model = new_gpm()
    batch = padded(samples(), "left")
    with pytest.raises(ValueError, match="pass prompt_lens"):
        model(*batch)
    with pytest.raises(ValueError, match=r"of shape \(4,\), got \(3,\)"):
        model(*batch, PROMPTS[:3])
    with pytest.raises(ValueError, match=r"prompt_lens\[2\] is 3, outside 1..2"):
        model(*batch, torch.tensor([3, 7, 3, 9]))
    with pytest.raises(ValueError, match=r"prompt_lens\[0\] is 0"):
        model(*batch, torch.tensor([0, 7, 1, 9]))
    with pytest.raises(ValueError, match="sample 1 of the batch has no tokens"):
        model(batch[0], batch[1] * torch.tensor([[1], [0], [1], [1]]), PROMPTS)


def test_a_mean_needs_a_response_in_every_sample(new_gpm):
    model = new_gpm(pool="mean", gate="none")
    batch = padded(samples(), "left")
    with pytest.raises(ValueError, match=r"a mean over the response, .*: pass prompt_lens"):
        model(*batch)
    with pytest.raises(ValueError, match=r"prompt_lens\[3\] is 9, outside 1..8"):
        model(*batch, PROMPTS)


def test_context_parallelism_is_refused(new_gpm):
    with pytest.raises(ValueError, match=r"--ds\.ring_attn_size 1"):
        new_gpm()(*padded(samples(), "left"), PROMPTS, ring_attn_group=object())


def test_what_openrlhf_passes_to_every_reward_model_is_accepted(new_gpm):
    v, _ = new_gpm()(*padded(samples(), "left"), PROMPTS, pad_sequence=True, packed_seq_lens=[5, 12, 2, 9])
    assert v.shape == (4, 6)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0, 5000.0])
def test_a_learnable_tau_starts_at_the_configs_and_reaches_the_optimizer(new_gpm, tau):
    from openrlhf_gpm.models.gpm import Temperature

    temperature = Temperature(tau)
    temperature.reset()
    assert temperature().item() == pytest.approx(tau, rel=1e-4)
    assert temperature().shape == ()
    model = new_gpm(learn_tau=True)
    assert "temperature.rho" in dict(model.named_parameters())
    outputs = model(torch.tensor([[5, 6, 1]]), prompt_lens=torch.tensor([1]), return_output=True)[2]
    outputs.tau.backward()
    assert model.temperature.rho.grad.item() > 0


def test_experts_may_be_computed_in_any_way_that_the_trunk_knows(new_config):
    """The same numbers and gradients, one expert at a time or all in one product."""
    results = []
    for way in ("eager", "grouped_mm"):
        config = new_config("mixtral")
        config._experts_implementation = way
        config.gpm = GPMConfig(dim=4).to_dict()
        torch.manual_seed(0)
        model = gpm_class(config)(config)
        assert model.config._experts_implementation == way
        v, _ = model(torch.arange(10, 30).view(2, 10), prompt_lens=torch.tensor([3, 4]))
        v[:, 0].sum().backward()
        results.append((v.detach(), *(p.grad for p in model.model.layers[0].mlp.experts.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
