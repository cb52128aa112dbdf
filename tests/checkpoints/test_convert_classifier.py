"""A GPM as a plain *ForSequenceClassification, and back."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, open_checkpoint, save_gpm
from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.models.gpm import scale_gate
from openrlhf_gpm.scoring.classifier import check_layout
from openrlhf_gpm.scoring.scorer import GPM

PROMPT, RESPONSES = "Name a prime.", ["Seven.", "Nine is not a prime.", "Paris, I am fine."]
SHARDED = "40KB"


def make(model, tokenizer, path: Path, max_shard_size: str = "5GB") -> Path:
    model.save_pretrained(path, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(path)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def plain_logits(path: Path, samples: list[list[int]], pad: str = "right") -> torch.Tensor:
    """What transformers' own class says about samples, padded into one batch with config.json's pad_token_id."""
    from transformers import AutoModelForSequenceClassification

    model, report = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    width = max(map(len, samples))
    ids, mask = [], []
    for sample in samples:
        filling = [model.config.pad_token_id] * (width - len(sample))
        ids.append(sample + filling if pad == "right" else filling + sample)
        ones, zeros = [1] * len(sample), [0] * len(filling)
        mask.append(ones + zeros if pad == "right" else zeros + ones)
    mask = torch.tensor(mask)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        return model.eval()(torch.tensor(ids), attention_mask=mask, position_ids=positions).logits


@pytest.mark.parametrize("trunk", ["llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("gate", ["none", "softmax_scaled"])
def test_plain_transformers_gives_the_embeddings_and_the_gate(new_gpm, chat_tokenizer, tmp_path, trunk, gate):
    path = make(new_gpm(trunk, gate=gate, normalize=False), chat_tokenizer, tmp_path / "gpm")
    convert(path, tmp_path / "classifier", "gpm", "classifier")
    gpm = GPM.from_pretrained(path, device="cpu")
    encoded = [gpm.formatter.encode(PROMPT, response) for response in RESPONSES]
    v, lambdas = gpm.embed([PROMPT] * 3, RESPONSES)
    for pad in ("right", "left"):
        logits = plain_logits(tmp_path / "classifier", [sample.input_ids for sample in encoded], pad)
        assert logits.shape == (3, 6 if gate == "none" else 9)
        torch.testing.assert_close(logits[:, :6], v, atol=1e-5, rtol=1e-5)
    if gate != "none":
        prompt = encoded[0].input_ids[: encoded[0].prompt_len]
        z = plain_logits(tmp_path / "classifier", [prompt])[:, 6:]
        torch.testing.assert_close(scale_gate(z, gate, 32), lambdas[:1], atol=1e-5, rtol=1e-5)


def test_the_gate_rows_come_last(new_gpm, chat_tokenizer, tmp_path):
    model = new_gpm()
    make(model, chat_tokenizer, tmp_path / "gpm")
    convert(tmp_path / "gpm", tmp_path / "classifier", "gpm", "classifier")
    tensors = load_file(tmp_path / "classifier/model.safetensors")
    assert torch.equal(tensors["score.weight"], torch.cat([model.score.weight, model.gate.weight]))
    assert "gate.weight" not in tensors


def test_config_json_is_that_of_a_regression_and_still_says_what_scoring_needs(gpm_checkpoint, tmp_path):
    config = convert(gpm_checkpoint, tmp_path / "classifier", "gpm", "classifier")
    written = json.loads((tmp_path / "classifier/config.json").read_text())
    assert written["architectures"] == ["LlamaForSequenceClassification"]
    assert written["problem_type"] == "regression"
    assert written["pad_token_id"] == 2
    assert len(written["id2label"]) == len(written["label2id"]) == 9
    assert config == GPMConfig.from_dict(written["gpm"]) == GPMConfig(dim=6, layout="classifier")


@pytest.mark.parametrize("max_shard_size", ["5GB", SHARDED])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gate": "none"},
        {"dim": 2, "gate": "none", "tau": 1.5},
        {"gate": "softplus", "learn_tau": True, "tau": 0.37},
        {"head": "reward", "dim": 2, "gate": "none", "normalize": False},
        {"head": "pairwise", "dim": 2, "gate": "none", "normalize": False},
    ],
)
def test_there_and_back_again_changes_no_bit(new_gpm, chat_tokenizer, tmp_path, settings, max_shard_size):
    model = new_gpm(**settings)
    model.config.gpm["max_len"] = 77
    path = make(model, chat_tokenizer, tmp_path / "gpm", max_shard_size)
    assert (len(list(path.glob("*.safetensors"))) > 1) == (max_shard_size == SHARDED)
    convert(path, tmp_path / "classifier", "gpm", "classifier")
    convert(tmp_path / "classifier", tmp_path / "back", "classifier")
    assert contents(tmp_path / "back") == contents(path)
    tensors = {}
    for file in (tmp_path / "classifier").glob("*.safetensors"):
        tensors |= load_file(file)
    assert {name for name in tensors if not name.startswith("model.")} == {"score.weight"}


def test_keys_that_we_do_not_know_survive_the_round_trip(gpm_checkpoint, tmp_path):
    path = Path(shutil.copytree(gpm_checkpoint, tmp_path / "gpm"))
    config = json.loads((path / "config.json").read_text())
    config = {"zz_first": [1, {"é": None}], **config, "problem_type": "single_label_classification", "a_last": 1e-5}
    del config["pad_token_id"]
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (path / "README.md").write_text("card")
    convert(path, tmp_path / "classifier", "gpm", "classifier")
    assert json.loads((tmp_path / "classifier/config.json").read_text())["zz_first"] == [1, {"é": None}]
    convert(tmp_path / "classifier", tmp_path / "back", "classifier")
    assert contents(tmp_path / "back") == contents(path)


def test_bf16_tensors_stay_bf16(new_gpm, chat_tokenizer, tmp_path):
    path = make(new_gpm().bfloat16(), chat_tokenizer, tmp_path / "gpm")
    convert(path, tmp_path / "classifier", "gpm", "classifier")
    assert {t.dtype for t in load_file(tmp_path / "classifier/model.safetensors").values()} == {torch.bfloat16}
    convert(tmp_path / "classifier", tmp_path / "back", "classifier")
    assert contents(tmp_path / "back") == contents(path)


def test_a_classifier_that_was_trained_further_becomes_a_gpm_with_the_new_weights(new_gpm, chat_tokenizer, tmp_path):
    """transformers wrote it again, in other files."""
    from transformers import AutoModelForSequenceClassification

    make(new_gpm(), chat_tokenizer, tmp_path / "gpm", SHARDED)
    convert(tmp_path / "gpm", tmp_path / "classifier", "gpm", "classifier")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        model.score.weight += 1
    make(model, chat_tokenizer, tmp_path / "trained")
    convert(tmp_path / "trained", tmp_path / "back", "classifier")
    back = load_gpm(tmp_path / "back")
    assert torch.equal(torch.cat([back.score.weight, back.gate.weight]), model.score.weight)
    assert back.gpm_config == GPMConfig(dim=6)


def test_the_files_of_the_trunk_are_copied_as_they_are(new_gpm, chat_tokenizer, tmp_path):
    path = make(new_gpm(), chat_tokenizer, tmp_path / "gpm", SHARDED)
    seen = []
    convert(path, tmp_path / "classifier", "gpm", "classifier", progress=lambda files: seen.extend(files) or files)
    assert sorted(seen) == sorted(file.name for file in path.glob("*.safetensors"))
    weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    heads = {weight_map["score.weight"], weight_map["gate.weight"]}
    for name in set(seen) - heads:
        assert (tmp_path / "classifier" / name).read_bytes() == (path / name).read_bytes()
    index = json.loads((tmp_path / "classifier/model.safetensors.index.json").read_text())
    assert index["weight_map"]["score.weight"] == weight_map["score.weight"]
    sizes = [load_file(file) for file in (tmp_path / "classifier").glob("*.safetensors")]
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in sizes for t in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for tensors in sizes for t in tensors.values())


def test_a_padding_token_that_is_the_eos_is_not_used(new_gpm, new_tokenizer, tmp_path):
    """transformers reads the last token that is not padding, which would be the one before the EOS."""
    tokenizer = new_tokenizer(pad=False)
    tokenizer.pad_token = tokenizer.eos_token
    model = new_gpm(gate="none", normalize=False)
    model.config.pad_token_id = tokenizer.eos_token_id
    path = make(model, tokenizer, tmp_path / "gpm")
    notes = []
    convert(path, tmp_path / "classifier", "gpm", "classifier", log=notes.append)
    assert json.loads((tmp_path / "classifier/config.json").read_text())["pad_token_id"] != tokenizer.eos_token_id
    assert any("pad_token_id 0: not the tokenizer's" in note for note in notes)
    gpm = GPM.from_pretrained(path, device="cpu")
    samples = [gpm.formatter.encode(PROMPT, response).input_ids for response in RESPONSES]
    v, _ = gpm.embed([PROMPT] * 3, RESPONSES)
    torch.testing.assert_close(plain_logits(tmp_path / "classifier", samples), v, atol=1e-5, rtol=1e-5)


def test_a_lora_adapter_is_merged_on_the_way(gpm_checkpoint, chat_tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load_gpm(gpm_checkpoint), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    save_gpm(model, chat_tokenizer, tmp_path / "adapter")
    want = GPM.from_pretrained(tmp_path / "adapter", device="cpu").score(PROMPT, RESPONSES)["scores"]
    notes = []
    convert(tmp_path / "adapter", tmp_path / "whole", "gpm", log=notes.append)
    convert(tmp_path / "adapter", tmp_path / "classifier", "gpm", "classifier")
    convert(tmp_path / "classifier", tmp_path / "back", "classifier")
    assert any("is a LoRA adapter: merged into its base model" in note for note in notes)
    for name in ("whole", "back"):
        assert GPM.from_pretrained(tmp_path / name, device="cpu").score(PROMPT, RESPONSES)["scores"] == want
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "whole", "classifier", "back"}
    refused(tmp_path / "adapter", tmp_path / "new", "is a LoRA adapter: merge it", "bt")


# What is refused


def refused(path, target, match, from_="gpm", to="gpm", **options):
    with pytest.raises(ValueError, match=match) as error:
        convert(path, target, from_, to, **options)
    assert "\n" not in str(error.value)


@pytest.fixture
def classifier(gpm_checkpoint, tmp_path):
    convert(gpm_checkpoint, tmp_path / "classifier", "gpm", "classifier")
    return tmp_path / "classifier"


def test_arguments_that_make_no_sense_name_their_flag(gpm_checkpoint, classifier, tmp_path):
    new = tmp_path / "new"
    refused(gpm_checkpoint, new, "--from must be one of authors, bt, gpm, classifier; got 'hf'", "hf")
    refused(gpm_checkpoint, new, "--to must be one of gpm, classifier; got 'bt'", to="bt")
    refused(gpm_checkpoint, new, "--from gpm --to gpm changes nothing")
    refused(classifier, new, "--from classifier --to classifier changes nothing", "classifier", "classifier")
    refused(tmp_path / "nowhere", new, "--input .*nowhere is not a directory")
    refused(gpm_checkpoint, new, "--tau does not apply to --from gpm", to="classifier", tau=1.0)
    refused(gpm_checkpoint, new, "--normalize and --no-normalize are for --from authors, not bt", "bt", normalize=True)
    assert not new.exists()


def test_an_output_that_exists_is_never_touched(gpm_checkpoint, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        refused(gpm_checkpoint, tmp_path / name, f"--output .*{name} exists and is not an empty dir", to="classifier")
    assert (tmp_path / "full/notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    refused(gpm_checkpoint, gpm_checkpoint, "is --input .*, which is only read", to="classifier")
    (tmp_path / "empty").mkdir()
    convert(gpm_checkpoint, tmp_path / "empty", "gpm", "classifier")
    assert (tmp_path / "empty/config.json").exists()


def test_nothing_is_left_of_a_conversion_that_fails_half_way(new_gpm, chat_tokenizer, tmp_path):
    path = make(new_gpm(), chat_tokenizer, tmp_path / "gpm", SHARDED)

    def full_disk(files):
        yield files[0]
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        convert(path, tmp_path / "classifier", "gpm", "classifier", progress=full_disk)
    assert [file.name for file in tmp_path.iterdir()] == ["gpm"]


def test_the_other_of_our_layouts_is_recognised(gpm_checkpoint, classifier, tmp_path):
    refused(classifier, tmp_path / "new", "is a classifier already: use --from classifier", "gpm", "classifier")
    refused(gpm_checkpoint, tmp_path / "new", "GPM in our own layout: use --from gpm --to classifier", "classifier")
    refused(classifier, tmp_path / "new", "is a GPM already .*use --from classifier", "authors")
    with pytest.raises(ValueError, match="layout of a plain classifier"):
        load_gpm(classifier)


def test_a_plain_classifier_cannot_read_a_mean(new_gpm, chat_tokenizer, tmp_path):
    mean = make(new_gpm(pool="mean"), chat_tokenizer, tmp_path / "gpm")
    refused(
        mean, tmp_path / "new", "reads the mean over a response's tokens .*keep the gpm layout", "gpm", "classifier"
    )
    with pytest.raises(ValueError, match=r"--backend url: .* reads the mean .*use --backend torch"):
        check_layout(open_checkpoint(mean), "url")


def test_an_adapter_of_a_mean_is_refused_by_its_own_name_before_it_is_merged(new_gpm, chat_tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    mean = make(new_gpm(pool="mean"), chat_tokenizer, tmp_path / "gpm")
    save_gpm(get_peft_model(load_gpm(mean), LoraConfig(target_modules=["q_proj"])), chat_tokenizer, tmp_path / "lora")
    notes = []
    refused(tmp_path / "lora", tmp_path / "new", "/lora reads the mean ", "gpm", "classifier", log=notes.append)
    assert notes == []


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


def test_a_classifier_whose_head_does_not_fit_is_refused(classifier, tmp_path):
    config = json.loads((classifier / "config.json").read_text())
    edit_config(classifier, gpm=config["gpm"] | {"dim": 8})
    refused(classifier, tmp_path / "new", r"score.weight is \[9, 32\], but should be \[12, 32\]", "classifier")


@pytest.mark.parametrize("record", [[], {"tensors": {"temperature.rho": {"dtype": "nn"}}}, {"gate_file": 3}])
def test_a_damaged_record_of_the_export_is_refused(classifier, tmp_path, record):
    edit_config(classifier, gpm_export=record)
    refused(classifier, tmp_path / "new", "gpm_export is damaged", "classifier")
    assert not (tmp_path / "new").exists()


def test_a_record_cannot_lead_out_of_the_directory(new_gpm, chat_tokenizer, tmp_path):
    make(new_gpm(), chat_tokenizer, tmp_path / "gpm", SHARDED)
    convert(tmp_path / "gpm", tmp_path / "classifier", "gpm", "classifier")
    edit_config(tmp_path / "classifier", gpm_export={"gate_file": "../model.safetensors"})
    convert(tmp_path / "classifier", tmp_path / "back", "classifier")
    assert not (tmp_path / "model.safetensors").exists()
    load_gpm(tmp_path / "back")


def test_head_and_gate_of_two_dtypes_are_refused(gpm_checkpoint, tmp_path):
    path = Path(shutil.copytree(gpm_checkpoint, tmp_path / "gpm"))
    tensors = load_file(path / "model.safetensors")
    tensors["gate.weight"] = tensors["gate.weight"].bfloat16()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    refused(path, tmp_path / "new", "score.weight is F32, gate.weight is BF16: save both with one", to="classifier")


def test_a_family_without_such_a_classifier_is_refused(new_gpm, chat_tokenizer, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make(new_gpm("granite"), chat_tokenizer, tmp_path / "gpm")
    refused(path, tmp_path / "new", "no classifier with a head `score` for model type 'granite'", to="classifier")
