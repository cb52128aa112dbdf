"""Checkpoints as they come: files that contradict each other, tokens without a row, and what others read of ours."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AddedToken, AutoConfig

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, open_checkpoint, save_gpm
from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.models.transformers4 import old_names
from openrlhf_gpm.scoring.scorer import GPM

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path, gpm_checkpoint) -> Path:
    return Path(shutil.copytree(gpm_checkpoint, tmp_path / "m"))


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Files that contradict each other


def test_layers_that_config_json_does_not_have_are_refused(folder):
    """F11: the model would be half of what was trained."""
    edit(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"tensors have no place .* first model\.layers\.1\."):
        load_gpm(folder)


def test_a_tensor_of_any_other_name_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"extra.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors have no place .* first extra\.weight"):
        load_gpm(folder)


def test_the_output_layer_of_a_language_model_may_be_there(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": torch.ones(320, 32)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    load_gpm(folder)


def test_whole_numbers_are_no_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj\.weight is I8, but config\.json has no quantization_config"):
        load_gpm(folder)


def test_a_single_file_beside_an_index_is_refused(folder, new_gpm):
    """F12: what saving in shards into an old folder leaves; one would be checked and the other loaded."""
    new_gpm(seed=1).save_pretrained(folder.with_name("shards"), max_shard_size="40KB")
    for file in folder.with_name("shards").glob("model*"):
        shutil.copy(file, folder)
    for opened in (load_gpm, lambda path: convert(path, path.with_name("out"), "gpm", "classifier")):
        with pytest.raises(ValueError, match=r"has both model\.safetensors and .*index\.json"):
            opened(folder)


# Tokens and rows


def with_token(folder, new_gpm, new_tokenizer, token, template=None):
    """A GPM whose tokenizer got one more token than the embedding has rows."""
    tokenizer = new_tokenizer(pad=False)
    rows = len(tokenizer)
    tokenizer.add_tokens([token])
    if template:
        tokenizer.chat_template = template
    model = new_gpm()
    assert model.config.vocab_size >= rows
    shutil.rmtree(folder)
    save_gpm(model, tokenizer, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:rows].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows, "pad_token_id": None}))
    return rows


def test_a_text_token_without_a_row_is_named_before_anything_is_loaded(folder, new_gpm, new_tokenizer):
    rows = with_token(folder, new_gpm, new_tokenizer, "grüezi")
    with pytest.raises(ValueError, match=rf"has {rows + 1} tokens, the embedding {rows} rows: 'grüezi' has none"):
        open_checkpoint(folder).formatter()


def test_a_special_token_that_nothing_writes_may_lack_a_row(folder, new_gpm, new_tokenizer):
    image = AddedToken("<image>", special=True)
    with_token(folder, new_gpm, new_tokenizer, image)
    assert GPM.from_pretrained(folder, device="cpu").score("Hello", ["a", "b" * 50])["ranking"]
    with_token(folder, new_gpm, new_tokenizer, image, template="{{ '<image>' + messages[-1]['content'] }}")
    with pytest.raises(ValueError, match="'<image>' has none"):
        open_checkpoint(folder).formatter()


def test_another_id_pads_where_only_the_padding_token_lacks_a_row(folder, new_gpm, new_tokenizer):
    rows = with_token(folder, new_gpm, new_tokenizer, AddedToken("<own_pad>", special=True))
    edit(folder / "tokenizer_config.json", pad_token="<own_pad>")
    assert open_checkpoint(folder).tokenizer().pad_token_id == rows
    gpm = GPM.from_pretrained(folder, device="cpu", share_prompt="off")
    assert gpm.score("Hello", ["a", "b" * 50])["ranking"]


# What transformers 4 reads


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 500000.0}, LLAMA3])
def test_the_rotary_embedding_has_both_spellings(rope, new_config, chat_tokenizer, tmp_path):
    config = new_config(rope_parameters=dict(rope))
    config.gpm = GPMConfig(dim=6).to_dict()
    save_gpm(gpm_class(config)(config), chat_tokenizer, tmp_path / "gpm")
    convert(tmp_path / "gpm", tmp_path / "plain", "gpm", "classifier")
    for name in ("gpm", "plain"):
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert written["rope_theta"] == 500000.0
        assert written["torch_dtype"] == written["dtype"] == "float32"
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        assert written.get("rope_scaling") == (scaling if rope is LLAMA3 else None)
        assert AutoConfig.from_pretrained(tmp_path / name).rope_parameters == rope
    assert load_gpm(tmp_path / "gpm").config.rope_parameters == rope


def test_a_foreign_checkpoint_gets_both_spellings_when_it_is_converted(new_config, chat_tokenizer, tmp_path):
    from transformers import LlamaForSequenceClassification

    config = new_config(rope_parameters=dict(LLAMA3), num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "bt")
    chat_tokenizer.save_pretrained(tmp_path / "bt")
    convert(tmp_path / "bt", tmp_path / "gpm", "bt")
    written = json.loads((tmp_path / "gpm" / "config.json").read_text())
    assert (written["rope_theta"], written["rope_scaling"]["factor"]) == (500000.0, 8.0)


def test_a_model_saved_in_another_dtype_says_so_twice(new_gpm, chat_tokenizer, tmp_path):
    model = new_gpm()
    save_gpm(model, chat_tokenizer, tmp_path / "fp32")
    save_gpm(model.bfloat16(), chat_tokenizer, tmp_path / "bf16")
    written = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == ("bfloat16", "bfloat16")


def test_old_names_by_hand():
    neox = {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.25}}
    assert old_names(neox) == {
        "rope_theta": 5.0,
        "partial_rotary_factor": 0.25,
        "rotary_emb_base": 5.0,
        "rotary_pct": 0.25,
    }
    layers = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert old_names({"rope_parameters": layers}) == {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert old_names({"model_type": "gpt2"}) == {}


# Python


@pytest.mark.parametrize(
    ("prompt", "responses", "named"),
    [
        (None, ["a"], "a prompt must be a text or a list of messages, got None"),
        (3, ["a"], "a prompt must be a text or a list of messages, got 3"),
        ("q", ["a", None], r"responses\[1\]: a response must be a text, got None"),
        ("q", ["a", "\ud800"], r"responses\[1\]: a response has half a surrogate pair"),
        ("q", [b"a"], r"responses\[0\]: a response must be a text, got b'a'"),
        ("q", None, "responses must be a list of texts, got None"),
        ("q", "ab", "responses must be a list of texts, got 'ab'"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], ["b"], "ends with an assistant"),
    ],
)
def test_what_is_no_group_is_one_line_in_python_too(prompt, responses, named, gpm_checkpoint):
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu")
    with pytest.raises(ValueError, match=named):
        gpm.score(prompt, responses)


def test_a_device_without_numbers_is_refused(gpm_checkpoint):
    with pytest.raises(ValueError, match="--device meta is not supported"):
        GPM.from_pretrained(gpm_checkpoint, device="meta")


def test_a_response_that_is_json_stays_text(gpm_checkpoint):
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu")
    text = json.dumps([{"role": "assistant", "content": "a"}])
    assert gpm.score("q", [text, "a"])["scores"][0][1] != 0
