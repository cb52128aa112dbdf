"""Forests by hand, and against full encoding: values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import group, one_by_one

from openrlhf_gpm.models.inputs import packed_inputs, padded_inputs
from openrlhf_gpm.samples.batch import collate
from openrlhf_gpm.samples.forest import (
    KEY_COST,
    collate_forest,
    forest_batches,
    forest_pays,
    sample_places,
    shared_length,
    token_counts,
)
from openrlhf_gpm.samples.formatting import Encoded

# By hand


def test_padded_and_packed_inputs_by_hand():
    batch = torch.tensor([[0, 0, 7], [5, 6, 0]]), torch.tensor([[0, 0, 1], [1, 1, 0]]), torch.tensor([1, 2])
    inputs = padded_inputs(*batch)
    assert inputs.inputs["position_ids"].tolist() == [[0, 0, 0], [0, 1, 1]]
    assert inputs.last_at.tolist() == [2, 4]
    assert (inputs.response_at.tolist(), inputs.response_lens.tolist()) == ([], [0, 0])
    assert inputs.gate_at.tolist() == [2, 4]
    inputs = packed_inputs(*batch)
    assert inputs.inputs["input_ids"].tolist() == [[7, 5, 6]]
    assert inputs.inputs["position_ids"].tolist() == [[0, 0, 1]]
    assert inputs.last_at.tolist() == [0, 2]
    assert inputs.gate_at.tolist() == [0, 2]
    assert inputs.index[[2, 3, 4]].tolist() == [0, 1, 2]
    of_two = batch[0], batch[1], torch.tensor([0, 1])  # responses of one token each
    for inputs, at in ((padded_inputs(*of_two), [2, 4]), (packed_inputs(*of_two), [0, 2])):
        assert (inputs.response_at.tolist(), inputs.response_lens.tolist()) == (at, [1, 1])


def test_the_shared_prefix_by_hand():
    assert shared_length(group([7, 8, 9], [1], [2, 3])) == 3
    assert shared_length(group([7, 8, 9], [5, 1], [5, 2])) == 4  # responses with the same beginning
    assert shared_length(group([7, 8, 9], [5], [5, 2])) == 3  # the shorter response keeps its token
    assert shared_length(group([7, 8, 9], [5], [5])) == 3
    assert shared_length(group([7, 8, 9], [1])) == 3
    assert shared_length([Encoded([7, 8, 1], 2), Encoded([7, 9, 1], 2)]) == 1  # the border token merged
    assert shared_length([Encoded([7], 1), Encoded([7, 8], 1)]) == 0
    assert shared_length([Encoded([7, 8], 1), Encoded([6, 8], 1)]) == 0
    assert shared_length(group([3, 5], [9, 2], [4, 7], [4, 6], [9, 1])) == 2  # others lie between smallest and largest


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_shared_prefix_is_the_longest_that_leaves_each_sample_a_token(samples):
    S = shared_length([Encoded(ids, 1) for ids in samples])
    shortest = min(map(len, samples))
    common = [n for n in range(shortest) if all(ids[:n] == samples[0][:n] for ids in samples)]
    assert max(common) == S


def test_a_forest_of_two_groups_by_hand():
    groups = [[Encoded([1, 2, 3, 9], 2), Encoded([1, 2, 4, 5, 9], 2)], [Encoded([7, 9], 1)]]
    batch = collate_forest(groups)
    assert batch["input_ids"].tolist() == [[1, 2, 7, 3, 9, 4, 5, 9, 9]]
    places = [(shared.tolist(), own.tolist()) for shared, own in sample_places(groups)]
    assert places == [([0, 1], [3, 4]), ([0, 1], [5, 6, 7]), ([2], [8])]
    forest = batch["forest"]
    assert forest.position_ids.tolist() == [[0, 1, 0, 2, 3, 2, 3, 4, 1]]
    assert forest.last_at.tolist() == [4, 7, 8]
    assert forest.gate_at.tolist() == [1, 2]
    assert (forest.response_at.tolist(), forest.response_lens.tolist()) == ([3, 4, 5, 6, 7, 8], [2, 3, 1])
    prefixes, branches = forest.parts
    assert (prefixes.rows, prefixes.width, prefixes.seen, prefixes.prefix_lens) == (2, 2, 2, None)
    assert (branches.rows, branches.width, branches.seen) == (3, 3, 5)
    assert forest.queries[:4].tolist() == [0, 1, 2, 0]
    assert forest.keys[:4].tolist() == [0, 1, 2, 2]
    assert forest.queries[4:].view(3, 3).tolist() == [[3, 4, 0], [5, 6, 7], [8, 0, 0]]
    assert forest.keys[4:].view(3, 5).tolist() == [[0, 1, 3, 4, 3], [0, 1, 5, 6, 7], [2, 8, 8, 8, 8]]
    mask = branches.mask(1, torch.bool)
    assert mask[1, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert mask[2, 0, 0].int().tolist() == [1, 0, 1, 0, 0]  # the shorter prefix ends earlier
    twice = branches.mask(2, torch.float32)
    assert torch.equal(twice.exp(), mask.repeat(1, 1, 2, 1).float())
    assert branches.mask(2, torch.float32) is twice  # made once a forward pass, not once a layer
    assert forest.back.tolist() == [0, 1, 2, 4, 5, 7, 8, 9, 10]
    assert forest.longest == 5
    assert forest.shared == 3
    assert forest.own.queries.tolist() == forest.own.keys.tolist() == [0, 2, 3, 5, 8, 9]
    assert (forest.own.tokens, forest.own.longest_queries, forest.own.causal) == (9, 3, True)
    assert (forest.before.queries.tolist(), forest.before.keys.tolist()) == ([0, 5, 6], [0, 2, 3])
    before = forest.before
    assert (before.tokens, before.longest_queries, before.longest_keys, before.causal) == (6, 5, 2, False)


def test_groups_without_a_prefix_are_last_in_the_row():
    """So that the branches that see a prefix are one stretch of queries."""
    groups = [group([], [1, 2], [3]), group([7, 8], [4], [5, 6])]
    batch = collate_forest(groups)
    assert batch["input_ids"].tolist() == [[7, 8, 4, 5, 6, 1, 2, 3]]
    forest = batch["forest"]
    assert forest.last_at.tolist() == [6, 7, 2, 4]  # samples are in their own order
    assert forest.own.queries.tolist() == [0, 2, 3, 5, 7, 8]
    assert (forest.before.queries.tolist(), forest.before.keys.tolist()) == ([0, 3], [0, 2])
    assert collate_forest(groups[:1])["forest"].before is None


def test_the_gate_is_read_where_the_prompt_ends_even_inside_a_branch():
    """The second sample keeps the prompt's last token, which merged into the first one's response."""
    batch = collate_forest([[Encoded([1, 2, 8, 9], 2), Encoded([1, 2, 3, 5, 9], 3)]])
    assert batch["input_ids"][0, batch["forest"].gate_at].tolist() == [3]


def test_tokens_that_responses_begin_with_count_for_each_response():
    forest = collate_forest([group([1, 2], [5, 6, 9], [5, 7, 9])])["forest"]
    assert forest.shared == 3
    assert forest.response_at.tolist() == [2, 3, 4, 2, 5, 6]


def test_branches_of_different_length_are_parts_of_their_own():
    lengths = [100, 64, 63, 32, 31, 1]
    parts = collate_forest([group(range(5), *([n] * n for n in lengths))])["forest"].parts
    assert [(part.rows, part.width) for part in parts] == [(1, 5), (2, 100), (2, 63), (2, 31)]


def test_a_long_prefix_does_not_lengthen_the_keys_of_others():
    long, short = group([5] * 2000, [6], [7]), group([8], *([i] * 9 for i in range(10, 60)))
    forest = collate_forest([long, short])["forest"]
    assert len(forest.keys) == (2000 + 1) + 2 * (2000 + 1) + 50 * (1 + 9)  # prefixes in two parts, then branches


@given(st.lists(st.tuples(st.integers(0, 200), st.lists(st.integers(1, 200), min_size=1, max_size=4)), max_size=5))
def test_padding_at_most_doubles_what_attention_reads(shapes):
    groups = [group([5] * S, *([i] * n for i, n in enumerate(own, start=10))) for S, own in shapes]
    for forest in [collate_forest(groups)["forest"]] if groups else []:
        places = sample_places(groups)
        prefixes = {id(shared): len(shared) for shared, _ in places}
        real = sum(prefixes.values()) + sum(len(shared) + len(own) for shared, own in places)
        rows = sum(part.rows for part in forest.parts)
        assert len(forest.keys) <= 2 * real + 2 * 31 * rows


def test_tokens_are_counted_in_full_and_with_each_prefix_once():
    many = [group([7, 8], [1, 2, 3, 4], [2, 3]), group([9], [1])]
    assert token_counts(many) == (12, 10)
    assert collate_forest(many)["input_ids"].numel() == 10


def test_a_forest_pays_where_it_has_a_twentieth_fewer_tokens():
    assert not forest_pays([group([7], [1] * 10, [2] * 10)])  # 21 of 22
    assert forest_pays([group([7, 8], [1] * 10, [2] * 10)])  # 22 of 24
    assert not forest_pays([group(range(50), [1])])
    assert forest_pays([group([7], [1]), group([7], [1] * 9)])  # nothing is shared, but no padding either: 12 of 20


def test_against_batches_by_length_padding_counts_for_nothing():
    unlike = [group([7], [8] * 100, [9] * 5)]  # 106 tokens, of 202 with padding and 107 without
    assert forest_pays(unlike)
    assert not forest_pays(unlike, by_length=True)


def test_a_prompt_outside_its_sample_is_refused():
    for ids, prompt_len in (([1, 2], 0), ([1, 2], 3), ([], 0)):
        with pytest.raises(ValueError, match=rf"prompt_len {prompt_len} is outside 1..{len(ids)}, the sample"):
            Encoded(ids, prompt_len)


# Batches


def test_a_group_that_is_too_large_is_split_and_all_samples_come_once():
    groups = [group(range(4), *([i, 9] for i in range(20))), group(range(8), [1], [2])]
    each = 2 + 6 * KEY_COST
    batches = list(forest_batches(groups, 20))
    assert batches[0] == [(1, range(2))]  # the longer prefix first
    assert [len(samples) for batch in batches[1:] for _, samples in batch] == [5, 5, 5, 5]
    assert 4 + 5 * each <= 20 < 4 + 6 * each
    assert list(forest_batches(groups, 10**6)) == [[(1, range(2)), (0, range(20))]]
    assert list(forest_batches(groups[1:], 1)) == [[(0, range(1))], [(0, range(1, 2))]]
    assert list(forest_batches([], 1)) == []


@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=6)), max_size=6),
    batch_tokens=st.integers(1, 300),
)
def test_batches_hold_every_sample_once_and_what_fits(shapes, batch_tokens):
    groups = [group([9] * S, *([i] * n for i, n in enumerate(own, start=10))) for S, own in shapes]
    batches = list(forest_batches(groups, batch_tokens))
    seen = [(g, i) for batch in batches for g, samples in batch for i in samples]
    assert sorted(seen) == [(g, i) for g, members in enumerate(groups) for i in range(len(members))]
    for batch in batches:
        tokens = sum(
            shared_length(groups[g]) + sum(len(groups[g][i].input_ids) - shared_length(groups[g]) for i in samples)
            for g, samples in batch
        )
        assert tokens <= batch_tokens or sum(len(samples) for _, samples in batch) == 1


# Against full encoding

IDS = st.integers(6, 319)
SHAPES = {
    "one group": [group(range(20, 50), [60], [70, 71, 72], list(range(80, 120)))],
    "prompts of many lengths": [
        group(range(20, 60), [60, 61], [70], [71]),
        group([30], [61, 62, 63], [64]),
        group(range(100, 107), [60, 61, 62, 63], [64, 65], [64]),
    ],
    "a group of one": [group([30, 31, 32], [61, 62]), group([40, 41], [61], [62])],
    "an empty response": [group([30, 31, 32], [1], [61, 62, 1])],
    "responses with the same beginning": [group([30, 31], [60, 61, 62], [60, 61, 63, 64], [60, 61, 65])],
    "equal responses": [group([30, 31], [60, 61], [60, 61], [60, 61])],
    "nothing shared": [group([], [30, 31], [40, 41, 42], prompt_lens=[1, 2])],
    "one group shares nothing, the other a prompt": [
        group([], [30, 35], [40, 41], prompt_lens=[1, 1]),
        group([30, 31], [60], [61]),
    ],
    "responses of very different lengths": [group([30, 31], [60] * 200, [61], [62, 63], [64] * 40)],
    "the prompt's last token merged in one": [
        group([30, 31], [32, 40], [33, 40], prompt_lens=[2, 3]),
        group([40, 41, 42], [60], [61, 62]),
    ],
    "the gate's token in the prefix, before its end": [
        group([30, 31], [32, 33, 40], [32, 33, 41], prompt_lens=[2, 3])
    ],
    "the gate's token far behind the prefix": [group([30], [31, 32, 33, 34, 35], [36], prompt_lens=[5, 1])],
}


def assert_same(model, groups):
    with torch.no_grad():
        for got, expected in zip(model(**collate_forest(groups)), one_by_one(model, groups), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "trunk", ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "gemma3_text", "mixtral", "opt", "deepseek_v3"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_forests_give_what_full_encoding_gives(new_gpm, trunk, shape):
    assert_same(new_gpm(trunk), SHAPES[shape])


@pytest.mark.parametrize(
    "settings", [{"gate": "none"}, {"normalize": False}, {"head": "reward"}, {"pool": "mean"}], ids=str
)
def test_every_head_gate_and_pool(new_gpm, settings):
    scalar = {"dim": 2, "gate": "none", "normalize": False} if "head" in settings else {}
    assert_same(new_gpm(**scalar, **settings), [g for shape in SHAPES.values() for g in shape])


@pytest.fixture(scope="module")
def gpm(new_gpm):
    return new_gpm(dim=4, gate="softplus")


@st.composite
def groups(draw):
    prompt = draw(st.lists(IDS, min_size=0, max_size=30))
    responses = draw(st.lists(st.lists(IDS, min_size=1, max_size=40), min_size=1, max_size=5))
    lens = [draw(st.integers(1, min(len(prompt) + len(own), len(prompt) + 2))) for own in responses]
    return group(prompt, *responses, prompt_lens=lens)


@settings(max_examples=60, deadline=None)
@given(many=st.lists(groups(), min_size=1, max_size=5))
def test_any_groups_give_what_full_encoding_gives(gpm, many):
    assert_same(gpm, many)


@pytest.mark.parametrize(("pool", "checkpointing"), [("last", False), ("last", True), ("mean", True)])
def test_forests_give_the_gradients_of_full_encoding(new_gpm, pool, checkpointing):
    gpm = new_gpm(dim=4, gate="softplus", pool=pool)
    many = [*SHAPES["responses of very different lengths"], *SHAPES["the prompt's last token merged in one"]]
    if checkpointing:  # the forward pass runs again in the backward pass, with the same forest
        gpm.gradient_checkpointing_enable()
        gpm.train()

    def gradients(run):
        gpm.zero_grad()
        v, gate = run()
        (v.square() @ torch.arange(1.0, 5.0)).sum().add(gate.square().sum()).backward()
        return {name: p.grad.clone() for name, p in gpm.named_parameters()}

    def full():
        v, gate = gpm(**collate([sample for g in many for sample in g], 0))
        return v, gate[[0, 5, 6]]  # the second group's gate is its second sample's

    forest, flat = gradients(lambda: gpm(**collate_forest(many))), gradients(full)
    for name, want in flat.items():
        scale = want.abs().max()
        assert scale > 0, name
        assert (forest[name] - want).abs().max() <= 1e-5 * scale, name


def test_nan_stays_in_its_sample_or_if_it_is_shared_in_its_group(new_gpm):
    """The row's first token is NaN, and so is one response's; padding must not carry either to other samples."""
    model = new_gpm()
    groups = [group([30, 31, 32], [60, 61], [62]), group([40, 41], [63, 64, 65], [33, 64]), group([42], [66], [67])]
    batch = collate_forest(groups)
    expected = model(**batch)
    with torch.no_grad():
        model.get_input_embeddings().weight[[30, 33]] = torch.nan
        v, gate = model(**batch)
    assert v.isnan().any(-1).tolist() == [True, True, False, True, False, False]
    assert gate.isnan().any(-1).tolist() == [True, False, False]
    for got, want in zip((v, gate), expected, strict=True):
        torch.testing.assert_close(got[~got.isnan()], want[~got.isnan()], atol=1e-5, rtol=0)


def test_a_bf16_trunk_has_an_fp32_head(new_gpm):
    model = new_gpm().bfloat16()
    many = SHAPES["prompts of many lengths"]
    v, gate = model(**collate_forest(many))
    assert v.dtype == gate.dtype == torch.float32
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(len(v)), atol=1e-6, rtol=0)  # bf16 would be off by 1e-3
    torch.testing.assert_close(v, one_by_one(model, many)[0], atol=0.1, rtol=0)


def test_a_forest_moves_as_tensors_do():
    forest = collate_forest(SHAPES["one group"])["forest"].to("meta")
    tensors = [forest.position_ids, forest.queries, forest.keys, forest.back, forest.last_at, forest.gate_at]
    tensors += [forest.response_at, forest.response_lens]
    tensors += [part.mask(1, torch.bool) for part in forest.parts if part.prefix_lens is not None]
    tensors += [x for runs in (forest.own, forest.before) for x in (runs.queries, runs.keys)]
    assert len(tensors) == 8 + 2 + 4
    assert {x.device.type for x in tensors} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("trunk", ["llama", "gpt_neox"])
def test_forests_on_a_gpu_give_what_full_encoding_gives_on_a_cpu(new_gpm, trunk):
    model = new_gpm(trunk)
    many = [g for shape in SHAPES.values() for g in shape]
    expected = one_by_one(model, many)
    batch = {name: value.to("cuda") for name, value in collate_forest(many).items()}
    with torch.no_grad():
        for got, want in zip(model.to("cuda")(**batch), expected, strict=True):
            torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=0)
