"""From groups to batches: padded or forest, decided once, and every sample's numbers where the batch says they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import group, one_by_one

from openrlhf_gpm.samples.batch import (
    collate,
    collate_groups,
    encode_all,
    encode_groups,
    length_batches,
    plan_batches,
)
from openrlhf_gpm.samples.formatting import Encoded, Formatter
from openrlhf_gpm.scoring.torch_backend import embed_batch

# By hand


def test_collate_by_hand_on_both_sides():
    encoded = [Encoded([5, 6, 7], 2), Encoded([8], 1)]
    left, right = collate(encoded, 0), collate(encoded, 0, side="right")
    assert left["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left["prompt_lens"].tolist() == right["prompt_lens"].tolist() == [2, 1]
    assert all(tensor.dtype == torch.long for tensor in left.values())
    with pytest.raises(ValueError, match="side"):
        collate(encoded, 0, side="middle")


def test_a_padded_batch_and_a_forest_by_hand():
    """The second group's gate is its second sample's, which keeps the prompt's last token."""
    groups = [group([7, 8, 9], [1], [2]), group([4], [5, 6], [5, 3], prompt_lens=[1, 2])]
    padded = collate_groups(groups, pad_token_id=0, share=False)
    assert padded.inputs["input_ids"].tolist() == [[7, 8, 9, 1], [7, 8, 9, 2], [0, 4, 5, 6], [0, 4, 5, 3]]
    assert padded.starts.tolist() == [0, 2]
    assert padded.gate_at.tolist() == [0, 3]
    forest = collate_groups(groups, pad_token_id=0, share=True)
    assert forest.inputs["input_ids"].tolist() == [[7, 8, 9, 4, 5, 1, 2, 6, 3]]
    assert forest.starts.tolist() == [0, 2]
    assert forest.gate_at.tolist() == [0, 1]


def test_a_forest_that_saves_nothing_is_not_made():
    groups = [group([7], [1] * 10, [2] * 10)]
    assert "forest" not in collate_groups(groups, 0, share=True).inputs


def test_neighbours_with_the_same_prompt_are_a_group(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=True)
    prompts, responses = ["Hello", "Hello", "Name a prime.", "Hello"], ["Fine.", "No.", "7", "Yes."]
    groups = encode_groups(formatter, prompts, responses)
    assert list(map(len, groups)) == [2, 1, 1]
    assert [sample for group in groups for sample in group] == encode_all(formatter, prompts, responses)
    with pytest.raises(ValueError, match="2 prompts but 1 responses: give one prompt per response"):
        encode_groups(formatter, ["a", "b"], ["c"])


# Plans


def test_batches_by_length_by_hand():
    assert length_batches([3, 10, 4, 1], batch_tokens=10) == [[1], [2, 0], [3]]
    assert length_batches([3, 3, 3], batch_tokens=6) == [[0, 1], [2]]
    assert length_batches([], batch_tokens=6) == []


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_batches_by_length_hold_every_sample_once_within_the_budget(lengths, budget):
    batches = length_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def shares(samples, share=True, longest=None):
    """Whether the plan for one group is a forest."""
    (answer,) = {shared for _, shared in plan_batches([samples], 10**6, share, longest)}
    return answer


def test_a_group_is_shared_where_that_saves_tokens_against_samples_of_similar_length():
    assert shares(group(range(20, 50), [60, 61], [70, 71]))
    assert not shares(group([7, 8, 9], list(range(60, 90)), list(range(90, 120))))  # 3 of 66
    assert not shares(group([7], [8] * 100, [9] * 5))  # a long and a short sample are not padded to one length
    assert not shares(group(range(20, 50), [60, 61]))
    assert not shares(group(range(20, 50), [60, 61], [70, 71]), share=False)


def test_a_sample_beyond_the_limit_keeps_its_group_from_being_shared():
    samples = group(range(20, 50), [60, 61], [70])
    assert shares(samples, longest=32)
    assert not shares(samples, longest=31)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), max_size=6)), max_size=6),
    batch_tokens=st.integers(1, 300),
    share=st.booleans(),
)
def test_a_plan_holds_every_sample_once_and_skips_empty_groups(shapes, batch_tokens, share):
    groups = [group([9] * S, *([i] * n for i, n in enumerate(own, start=10))) for S, own in shapes]
    plan = list(plan_batches(groups, batch_tokens, share))
    seen = [(g, i) for parts, _ in plan for g, which in parts for i in which]
    assert sorted(seen) == [(g, i) for g, samples in enumerate(groups) for i in range(len(samples))]
    assert all(len(which) for parts, _ in plan for _, which in parts)
    assert share or not any(shared for _, shared in plan)


# Against every sample by itself


@st.composite
def samples_of_a_group(draw):
    prompt = draw(st.lists(st.integers(6, 319), min_size=1, max_size=30))
    responses = draw(st.lists(st.lists(st.integers(6, 319), min_size=1, max_size=20), min_size=1, max_size=4))
    lens = [draw(st.integers(1, min(len(prompt) + len(own), len(prompt) + 2))) for own in responses]
    return group(prompt, *responses, prompt_lens=lens)


@pytest.fixture(scope="module")
def gpm(new_gpm):
    return new_gpm(dim=4, gate="softplus")


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(samples_of_a_group(), min_size=1, max_size=4), share=st.booleans())
def test_one_call_gives_what_every_sample_gives_by_itself(gpm, groups, share):
    for got, want in zip(
        embed_batch(gpm, collate_groups(groups, 2, share), "cpu"), one_by_one(gpm, groups), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("share", [False, True])
def test_a_batch_is_one_call_of_the_trunk_shared_or_not(gpm, share):
    """Ranks that choose differently must meet in every layer under ZeRO-3."""
    shapes = []
    hook = gpm.model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    groups = [group(range(20, 40), [60], [61, 62], [63]), group(range(40, 60), [64], [65])]
    embed_batch(gpm, collate_groups(groups, 2, share), "cpu")
    hook.remove()
    assert shapes == [(1, 46) if share else (5, 22)]


def test_embedding_leaves_no_graph_and_the_models_mode_alone(new_gpm):
    model = new_gpm().train()
    v, gate = embed_batch(model, collate_groups([group([7, 8], [9])], 2, share=True), "cpu")
    assert model.training
    assert not v.requires_grad
    assert (v.dtype, gate.dtype) == (torch.float32, torch.float32)
