import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, open_checkpoint, save_gpm
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import gpm_class
from openrlhf_gpm.samples.formatting import Formatter

TRUNKS = ["llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox"]
IDS = torch.tensor([[2, 2, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
PROMPTS = torch.tensor([2, 3])


@pytest.fixture
def checkpoint(gpm_checkpoint, tmp_path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(gpm_checkpoint, tmp_path / "gpm"))


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config |= changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(path, edit):
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_saved_gpm_is_loaded_as_it_was(new_gpm, chat_tokenizer, tmp_path, trunk):
    model = new_gpm(trunk, gate="softplus", tau=0.5, normalize=False)
    save_gpm(model, chat_tokenizer, tmp_path / "gpm")
    loaded = load_gpm(tmp_path / "gpm")
    assert loaded.gpm_config == GPMConfig(dim=6, gate="softplus", tau=0.5, normalize=False)
    assert not loaded.training
    for a, b in zip(loaded(IDS, MASK, PROMPTS), model(IDS, MASK, PROMPTS), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_plain_transformers_loads_trunk_and_head_of_a_checkpoint(new_gpm, chat_tokenizer, tmp_path, trunk):
    from transformers import AutoModelForSequenceClassification

    model = new_gpm(trunk, normalize=False)
    save_gpm(model, chat_tokenizer, tmp_path / "gpm")
    plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "gpm", output_loading_info=True)
    assert type(plain).__module__.startswith("transformers.")
    assert type(plain).__name__ == type(model).__name__
    assert set(report["missing_keys"]) == set()
    assert set(report["unexpected_keys"]) == {"gate.weight"}
    positions = (MASK.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = plain.eval()(IDS, attention_mask=MASK, position_ids=positions).logits
        torch.testing.assert_close(logits, model(IDS, MASK, PROMPTS)[0], atol=1e-5, rtol=1e-5)


def test_config_json_says_everything_that_scoring_needs(gpm_checkpoint):
    config = json.loads((gpm_checkpoint / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["gpm"] == {
        "head": "embedding",
        "dim": 6,
        "gate": "softmax_scaled",
        "pool": "last",
        "normalize": True,
        "tau": 0.1,
        "learn_tau": False,
        "chat_template": True,
        "input_template": None,
        "max_len": None,
        "reasoning": None,
        "today": "2024-07-26",
        "generation_prompt": True,
        "bos": "one",
        "eos": "append",
        "layout": "gpm",
        "format_version": 2,
    }
    assert len(config["id2label"]) == 6
    assert open_checkpoint(gpm_checkpoint).gpm == GPMConfig(dim=6)


def test_tensors_have_the_names_of_the_base_model(gpm_checkpoint, new_config):
    from transformers import LlamaForCausalLM

    ours = set(load_file(gpm_checkpoint / "model.safetensors"))
    base = {name for name in LlamaForCausalLM(new_config()).state_dict() if name != "lm_head.weight"}
    assert ours == base | {"score.weight", "gate.weight"}


def test_the_saved_tokenizer_formats_as_the_one_given(gpm_checkpoint, chat_tokenizer):
    from transformers import AutoTokenizer

    loaded = Formatter(AutoTokenizer.from_pretrained(gpm_checkpoint), chat_template=True)
    given = Formatter(chat_tokenizer, chat_template=True)
    assert loaded.encode("What is  the capital?\n", " Paris.\n\n") == given.encode(
        "What is  the capital?\n", " Paris.\n\n"
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model_becomes_a_gpm_with_a_new_head(new_config, tmp_path, tied, dtype):
    """What OpenRLHF's builder does at the start of training."""
    from transformers import AutoConfig, LlamaForCausalLM

    base = LlamaForCausalLM(new_config(tie_word_embeddings=tied))
    base.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.gpm = GPMConfig(dim=16).to_dict()
    model, report = gpm_class(config).from_pretrained(tmp_path, config=config, dtype=dtype, output_loading_info=True)
    assert set(report["missing_keys"]) == {"score.weight", "gate.weight"}
    assert set(report["unexpected_keys"]) == set()
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, base.model.layers[1].mlp.up_proj.weight.to(dtype))
    assert model.score.weight.std().item() == pytest.approx(1 / 33, rel=0.15)
    assert torch.count_nonzero(model.gate.weight) == 0


def test_the_dtype_is_the_stored_one_unless_given(new_gpm, chat_tokenizer, tmp_path):
    save_gpm(new_gpm().bfloat16(), chat_tokenizer, tmp_path / "gpm")
    assert load_gpm(tmp_path / "gpm").dtype == torch.bfloat16
    assert load_gpm(tmp_path / "gpm", dtype=torch.float32, device="cpu").dtype == torch.float32


def test_packing_and_attention_are_chosen_at_load(gpm_checkpoint):
    plain, packed = (
        load_gpm(gpm_checkpoint),
        load_gpm(gpm_checkpoint, packing_samples=True, attn_implementation="eager"),
    )
    assert packed.packing_samples
    assert packed.config._attn_implementation == "eager"
    torch.testing.assert_close(packed(IDS, MASK, PROMPTS), plain(IDS, MASK, PROMPTS), atol=1e-5, rtol=0)


def test_a_checkpoint_in_several_files_is_one_checkpoint(new_gpm, chat_tokenizer, gpm_checkpoint, tmp_path):
    new_gpm().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(load_gpm(tmp_path)(IDS, MASK, PROMPTS)[0], load_gpm(gpm_checkpoint)(IDS, MASK, PROMPTS)[0])
    sorted(tmp_path.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(ValueError, match=r"model-0000\d-of-.*missing or damaged"):
        load_gpm(tmp_path)


# LoRA


@pytest.fixture
def lora(new_config, new_gpm, tmp_path):
    """(base directory, adapter directory, the adapted model): trained as OpenRLHF does, on a language model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(new_config()).save_pretrained(tmp_path / "base")
    config = AutoConfig.from_pretrained(tmp_path / "base")
    config.gpm = GPMConfig(dim=6, tau=0.3).to_dict()
    model = gpm_class(config).from_pretrained(tmp_path / "base", config=config)
    model = get_peft_model(
        model,
        LoraConfig(
            r=4, target_modules=["q_proj", "up_proj"], modules_to_save=["score", "gate"], init_lora_weights=False
        ),
    )
    with torch.no_grad():
        model.base_model.model.gate.modules_to_save["default"].weight.normal_()
    return tmp_path / "base", tmp_path / "adapter", model.eval()


def test_a_lora_adapter_is_loaded_merged_with_its_head_and_gate(lora, chat_tokenizer):
    _, path, model = lora
    save_gpm(model, chat_tokenizer, path)
    assert not (path / "model.safetensors").exists()
    loaded = load_gpm(path)
    assert loaded.gpm_config.tau == 0.3
    assert not any("lora" in name for name, _ in loaded.named_modules())
    v, gate = model(IDS, MASK, PROMPTS)
    got_v, got_gate = loaded(IDS, MASK, PROMPTS)
    torch.testing.assert_close(got_v, v, atol=1e-5, rtol=0)
    torch.testing.assert_close(got_gate, gate, atol=1e-5, rtol=0)


def test_loading_an_adapter_reports_no_weight_that_it_holds_as_missing(lora, chat_tokenizer):
    _, path, model = lora
    save_gpm(model, chat_tokenizer, path)
    code = f"from openrlhf_gpm.checkpoints.checkpoint import load_gpm; load_gpm({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOAD REPORT" not in done.stderr + done.stdout
    assert "MISSING" not in done.stderr + done.stdout


def test_a_merged_adapter_can_be_saved_as_a_whole_checkpoint(lora, chat_tokenizer, tmp_path):
    _, path, model = lora
    save_gpm(model, chat_tokenizer, path)
    save_gpm(load_gpm(path), chat_tokenizer, tmp_path / "whole")
    torch.testing.assert_close(
        load_gpm(tmp_path / "whole")(IDS, MASK, PROMPTS), model(IDS, MASK, PROMPTS), atol=1e-5, rtol=0
    )


def test_gradients_reach_the_adapter_the_head_and_the_gate(lora):
    _, _, model = lora
    model.train()
    v, gate = model(IDS, MASK, PROMPTS)
    (v[0, 0] + gate[0, 0]).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("score.modules_to_save" in name for name in trained)
    assert any("gate.modules_to_save" in name for name in trained)
    assert any("q_proj.lora_A" in name for name in trained)
    assert not any("base_layer" in name for name in trained)


def test_an_adapter_in_a_bin_file_is_read(lora, chat_tokenizer):
    """OpenRLHF writes adapter_model.bin under ZeRO-3."""
    _, path, model = lora
    save_gpm(model, chat_tokenizer, path)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    torch.testing.assert_close(load_gpm(path)(IDS, MASK, PROMPTS), model(IDS, MASK, PROMPTS), atol=1e-5, rtol=0)


def test_an_adapter_of_a_gpm_needs_no_head_and_no_config_of_its_own(gpm_checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_gpm(gpm_checkpoint), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        load_gpm(tmp_path)(IDS, MASK, PROMPTS), model.eval()(IDS, MASK, PROMPTS), atol=1e-5, rtol=0
    )


def test_an_adapter_without_its_head_or_its_base_is_an_error(lora, chat_tokenizer):
    base, path, model = lora
    save_gpm(model, chat_tokenizer, path)
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "score" not in k}, path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter has no tensor score.weight"):
        load_gpm(path)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no adapter_model.safetensors.*incomplete"):
        load_gpm(path)
    save_file(tensors, path / "adapter_model.safetensors")
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=r"base_model_name_or_path .*base does not exist"):
        load_gpm(path)
    adapter = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(adapter | {"base_model_name_or_path": "no/such-model"}))
    with pytest.raises(ValueError, match="no/such-model: transformers cannot load it"):
        load_gpm(path)
    (path / "adapter_config.json").write_text(json.dumps(adapter | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        load_gpm(path)


def test_an_adapter_without_peft_installed_says_what_to_install(lora, chat_tokenizer, monkeypatch):
    _, path, model = lora
    save_gpm(model, chat_tokenizer, path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="LoRA adapter: `pip install peft`"):
        load_gpm(path)


# What is wrong with a checkpoint


def wrong(path, match):
    with pytest.raises(ValueError, match=match) as error:
        load_gpm(path)
    assert "\n" not in str(error.value)


def test_no_directory(tmp_path):
    wrong(tmp_path / "nowhere", "nowhere is not a directory")


def test_no_config(checkpoint):
    (checkpoint / "config.json").unlink()
    wrong(checkpoint, "config.json does not exist")


@pytest.mark.parametrize(("text", "match"), [("{", "is not JSON"), ("[]", "must hold a JSON object")])
def test_config_is_not_json(checkpoint, text, match):
    (checkpoint / "config.json").write_text(text)
    wrong(checkpoint, match)


def test_config_of_an_unknown_kind(checkpoint):
    edit_config(checkpoint, model_type="nonesuch")
    wrong(checkpoint, "config.json: transformers cannot read it")


def test_bradley_terry_given_as_gpm(checkpoint):
    edit_config(checkpoint, gpm=None, architectures=["RewardModel"])
    wrong(checkpoint, "RewardModel is a Bradley-Terry reward model .*convert --from bt")


def test_odd_dim(checkpoint):
    edit_config(checkpoint, gpm={"dim": 7})
    wrong(checkpoint, "--gpm.dim must be an even number >= 2, got 7")


def test_unknown_format(checkpoint):
    edit_config(checkpoint, gpm={"dim": 6, "format_version": 9})
    wrong(checkpoint, "format_version 9")


def test_config_and_head_disagree(checkpoint):
    edit_config(checkpoint, gpm={"dim": 8})
    wrong(checkpoint, r"score.weight is \[6, 32\], but config.json .*gpm.dim 8.* says \[8, 32\]")


def test_config_and_gate_disagree(checkpoint):
    edit_tensors(checkpoint, lambda t: t.update({"gate.weight": t["gate.weight"][:2].clone()}))
    wrong(checkpoint, r"gate.weight is \[2, 32\].* says \[3, 32\]")


def test_gate_missing(checkpoint):
    edit_tensors(checkpoint, lambda t: t.pop("gate.weight"))
    wrong(checkpoint, "no tensor gate.weight, but config.json has gate 'softmax_scaled'")


def test_gate_without_a_formula(checkpoint):
    edit_config(checkpoint, gpm={"dim": 6, "gate": "none"})
    wrong(checkpoint, "has a tensor gate.weight, but config.json has gate 'none'")


def test_head_missing(checkpoint):
    edit_tensors(checkpoint, lambda t: t.pop("score.weight"))
    wrong(checkpoint, "no tensor score.weight")


def test_the_authors_layout(checkpoint):
    edit_tensors(checkpoint, lambda t: t.update({"value_head.weight": t.pop("score.weight")}))
    wrong(checkpoint, "GPM authors' layout: use `openrlhf-gpm convert --from authors`")


def test_the_classifier_layout(checkpoint):
    edit_config(checkpoint, gpm=GPMConfig(dim=6, layout="classifier").to_dict())
    wrong(checkpoint, "layout of a plain classifier .*vllm backend, or use `openrlhf-gpm convert --from classifier")
    assert open_checkpoint(checkpoint).gpm.layout == "classifier", "the vllm backend reads it"


def test_trunk_tensor_missing(checkpoint):
    edit_tensors(checkpoint, lambda t: t.pop("model.norm.weight"))
    wrong(checkpoint, "1 tensors are missing, first model.norm.weight")


def test_trunk_tensor_of_another_size(checkpoint):
    edit_tensors(checkpoint, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    wrong(checkpoint, "transformers cannot load it")


def test_tensors_cut_short(checkpoint):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    wrong(checkpoint, "model.safetensors is missing or damaged")


def test_no_tensors_or_old_ones(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    wrong(checkpoint, "no model.safetensors: the checkpoint is incomplete")
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    wrong(checkpoint, "pytorch_model.bin: save it again as safetensors")


def test_no_index_of_several_files(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    wrong(checkpoint, "has its tensors in several files, but no model.safetensors.index.json")
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": ["model-00001-of-00002.safetensors"]}')
    wrong(checkpoint, "index.json has no weight_map")


# Writing


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_else(new_gpm, chat_tokenizer, tmp_path):
    save_gpm(new_gpm(tau=0.5), chat_tokenizer, tmp_path / "deep" / "gpm")
    save_gpm(new_gpm(tau=0.7), chat_tokenizer, tmp_path / "deep" / "gpm")
    assert load_gpm(tmp_path / "deep" / "gpm").gpm_config.tau == 0.7
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["gpm"]


def test_a_save_that_fails_leaves_the_old_checkpoint(new_gpm, chat_tokenizer, tmp_path):
    class Broken:
        pad_token_id = 2

        def save_pretrained(self, path):
            raise OSError("disk full")

    save_gpm(new_gpm(tau=0.5), chat_tokenizer, tmp_path / "gpm")
    with pytest.raises(OSError, match="disk full"):
        save_gpm(new_gpm(tau=0.7), Broken(), tmp_path / "gpm")
    assert load_gpm(tmp_path / "gpm").gpm_config.tau == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["gpm"]


def test_other_files_are_not_overwritten(new_gpm, chat_tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are not a checkpoint"):
        save_gpm(new_gpm(), chat_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        save_gpm(new_gpm(), chat_tokenizer, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_padding_token_is_written_for_plain_classifiers(new_gpm, chat_tokenizer, tmp_path):
    model = new_gpm()
    model.config.pad_token_id = None
    save_gpm(model, chat_tokenizer, tmp_path / "gpm")
    assert load_gpm(tmp_path / "gpm").config.pad_token_id == 2
