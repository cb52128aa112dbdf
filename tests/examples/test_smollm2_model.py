"""The base model of examples/smollm2 without its upper layers."""

import sys

import pytest
import torch
from transformers import LlamaForCausalLM

sys.path.insert(0, "examples/smollm2")
from model import cut


def test_a_cut_model_gives_the_states_of_the_layer_that_is_its_last(new_config, tmp_path):
    model = LlamaForCausalLM(new_config()).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = model.model(ids, output_hidden_states=True).hidden_states
        cut(model, 1)
        model.save_pretrained(tmp_path)
        found = LlamaForCausalLM.from_pretrained(tmp_path).model(ids).last_hidden_state
        assert len(whole) > 2, "there was a layer to cut"
        assert len(model.model.layers) == 1
        torch.testing.assert_close(found, model.model.norm(whole[1]))


@pytest.mark.parametrize("layers", [0, 99])
def test_a_number_of_layers_that_there_is_not_is_refused(new_config, layers):
    with pytest.raises(SystemExit, match=f"LAYERS must be from 1 to .*, got {layers}"):
        cut(LlamaForCausalLM(new_config()), layers)
