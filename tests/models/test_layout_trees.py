"""A tree gives the numbers of full encoding, values and gradients, whatever the lengths and the shared prefix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gpm.models.batching import shared_length
from openrlhf_gpm.models.formatting import Encoded, collate
from openrlhf_gpm.models.layout import collate_trees, packed_layout, tree_layout


def test_the_packed_layout_by_hand():
    layout = packed_layout(torch.tensor([[0, 0, 7], [5, 6, 0]]), torch.tensor([[0, 0, 1], [1, 1, 0]]))
    assert layout.inputs["input_ids"].tolist() == [[7, 5, 6]]
    assert layout.inputs["position_ids"].tolist() == [[0, 0, 1]]
    assert layout.first.tolist() == [0, 1]
    assert layout.last.tolist() == [0, 2]
    assert layout.index[[2, 3, 4]].tolist() == [0, 1, 2]


def test_a_tree_by_hand():
    batch = collate_trees([[Encoded([1, 2, 3, 9], 2), Encoded([1, 2, 4, 5, 9], 2)], [Encoded([7, 9], 1)]], 0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 4, 5, 9], [7, 9, 0, 0, 0, 0, 0]]
    assert batch["segments"].tolist() == [[0, 0, 1, 1, 2, 2, 2], [0, 1, -1, -1, -1, -1, -1]]
    assert batch["prompt_lens"].tolist() == [2, 1]
    layout = tree_layout(batch["input_ids"], batch["segments"], torch.float32)
    assert layout.inputs["position_ids"][0].tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert layout.inputs["position_ids"][1, :2].tolist() == [0, 1]
    assert layout.last.tolist() == [3, 6, 8]
    assert layout.first.tolist() == [0, 7]
    seen = (layout.inputs["attention_mask"][0, 0] == 0).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]


def test_the_gate_is_read_where_the_prompt_ends_even_inside_a_segment():
    """The second sample keeps the prompt's last token, which merged into the first one's response."""
    batch = collate_trees([[Encoded([1, 2, 8, 9], 2), Encoded([1, 2, 3, 5, 9], 3)]], 0)
    assert batch["input_ids"][0, batch["prompt_lens"] - 1].tolist() == [3]


def test_every_sample_keeps_a_token_of_its_own():
    assert shared_length([Encoded([1, 2, 9], 1), Encoded([1, 2, 9], 1)]) == 2
    assert shared_length([Encoded([1, 2, 9], 1)]) == 2
    assert shared_length([Encoded([1, 9], 1), Encoded([1, 2, 3, 9], 1)]) == 1


def group(draw) -> list[Encoded]:
    token = st.integers(5, 60)
    prompt = draw(st.lists(token, min_size=1, max_size=9))
    tails = draw(st.lists(st.lists(token, min_size=0, max_size=6), min_size=1, max_size=4))
    return [Encoded([*prompt, *tail, 1], len(prompt)) for tail in tails]


groups = st.lists(st.composite(group)(), min_size=1, max_size=3)


def full(model, gs):
    batch = collate([sample for g in gs for sample in g], 0)
    v, gate = model(**batch)
    starts = torch.tensor([0, *[len(g) for g in gs]]).cumsum(0)[:-1]
    return v, gate[starts]


@pytest.fixture(scope="module")
def gpm(new_gpm):
    return new_gpm(dim=4, gate="softplus")


@settings(max_examples=40, deadline=None)
@given(gs=groups)
def test_a_tree_gives_the_embeddings_and_gates_of_full_encoding(gpm, gs):
    v, gate = gpm(**collate_trees(gs, 0))
    want_v, want_gate = full(gpm, gs)
    torch.testing.assert_close(v, want_v, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gate, want_gate, atol=1e-5, rtol=1e-4)


def test_a_tree_gives_the_gradients_of_full_encoding(gpm):
    gs = [
        [Encoded([5, 6, 7, 8, 11, 1], 4), Encoded([5, 6, 7, 8, 12, 13, 1], 4), Encoded([5, 6, 7, 8, 1], 4)],
        [Encoded([9, 20, 21, 22, 1], 2), Encoded([9, 20, 1], 2)],
    ]

    def gradients(run):
        gpm.zero_grad()
        v, gate = run()
        (v.square() @ torch.arange(1.0, 5.0)).sum().add(gate.square().sum()).backward()
        return {name: p.grad.clone() for name, p in gpm.named_parameters()}

    tree = gradients(lambda: gpm(**collate_trees(gs, 0)))
    flat = gradients(lambda: full(gpm, gs))
    for name, want in flat.items():
        scale = want.abs().max()
        assert scale > 0, name
        assert (tree[name] - want).abs().max() <= 1e-5 * scale, name
