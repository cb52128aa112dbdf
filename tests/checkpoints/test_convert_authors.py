"""Checkpoints in the GPM authors' layout, built here tensor by tensor, against the paper's formulas in plain loops."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openrlhf_gpm.checkpoints.checkpoint import load_gpm, open_checkpoint
from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.scoring.scorer import GPM

TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<turn>' + m['role'] + ': ' + m['content'] + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant: ' }}{% endif %}"
)
PROMPT = [
    {"role": "user", "content": "Name a prime."},
    {"role": "assistant", "content": "Seven."},
    {"role": "user", "content": "What is the capital of France?"},
]
RESPONSES = ["Paris.", "Paris is the capital of France, and nine is not a prime.", "I am fine, thank you.\n\n", "é"]


def make_authors(path: Path, new_tokenizer, new_config, dim: int = 6, gated: bool = True, shards: int = 3) -> Path:
    """A directory as the authors' scripts save it: causal LM, value head, prompt head; config.json says nothing."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    path.mkdir(parents=True)
    config = new_config()
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["value_head.weight"] = torch.randn(dim, 32)
    if gated:
        tensors["prompt_head.weight"] = torch.randn(dim // 2, 32)
    names = sorted(tensors)  # lm_head comes first: one file holds it alone
    files = [names[:1], *[names[1 + i :: shards - 1] for i in range(shards - 1)]] if shards > 1 else [names]
    weight_map = {}
    for i, part in enumerate(files, start=1):
        file = f"model-{i:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    written = config.to_dict() | {"architectures": ["CustomRewardModel"], "dtype": "float32"}
    (path / "config.json").write_text(json.dumps(written, indent=2))
    tokenizer = new_tokenizer(TURNS)
    # As Gemma's and Llama 3's: the template writes a BOS, and the tokenizer adds one more.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text("{}")
    (path / "README.md").write_text("The authors' card.")
    return path


@pytest.fixture
def authors(tmp_path, new_tokenizer, new_config):
    return make_authors(tmp_path / "GPM-Gemma-2B", new_tokenizer, new_config)


def slow_scores(path: Path, normalize: bool, tau: float) -> list[list[float]]:
    """The scores of RESPONSES by the definitions and the authors' conventions, one number at a time."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = LlamaForCausalLM.from_pretrained(path).eval()
    heads = {}
    for file in path.glob("*.safetensors"):
        heads |= {name: tensor for name, tensor in load_file(file).items() if name.split(".")[0].endswith("_head")}

    def turns(messages):
        return "<s>" + "".join(f"<turn>{m['role']}: {m['content']}</turn>\n" for m in messages)

    prompt_ids = [0, *tokenizer.encode(turns(PROMPT), add_special_tokens=False)]
    assert prompt_ids[:2] == [0, 0], "one BOS of the tokenizer, one of the template"
    vectors, gates = [], []
    for response in RESPONSES:
        text = turns([*PROMPT, {"role": "assistant", "content": response}])
        ids = [0, *tokenizer.encode(text, add_special_tokens=False)]
        assert ids[: len(prompt_ids)] == prompt_ids
        ids[-1] = tokenizer.eos_token_id
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0].double()
        vector = [float(hidden[-1] @ row) for row in heads["value_head.weight"].double()]
        if normalize:
            length = math.sqrt(sum(x * x for x in vector))
            vector = [x / length for x in vector]
        vectors.append(vector)
        if "prompt_head.weight" in heads:
            z = [float(hidden[len(prompt_ids) - 1] @ row) for row in heads["prompt_head.weight"].double()]
            total = sum(math.exp(x) for x in z)
            gates.append([math.exp(x) / total for x in z])
        else:
            gates.append([1.0] * (len(vector) // 2))

    def score(i, j):
        v, w = vectors[i], vectors[j]
        return sum(g * (v[2 * l] * w[2 * l + 1] - v[2 * l + 1] * w[2 * l]) for l, g in enumerate(gates[i])) / tau

    K = range(len(RESPONSES))
    return [[score(i, j) for j in K] for i in K]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_converted_checkpoint_scores_as_the_formulas_say(tmp_path, new_tokenizer, new_config, gated, shards):
    path = make_authors(tmp_path / "GPM-Llama-3.1-8B", new_tokenizer, new_config, gated=gated, shards=shards)
    config = convert(path, tmp_path / "gpm", "authors")
    assert (config.dim, config.gate, config.tau, config.normalize) == (6, "softmax" if gated else "none", 0.1, True)
    got = GPM.from_pretrained(tmp_path / "gpm", device="cpu").score(PROMPT, RESPONSES)["scores"]
    want = slow_scores(path, normalize=True, tau=0.1)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), atol=1e-5, rtol=1e-5)
    assert max(abs(x) for row in want for x in row) > 0.1, "the scores of this test must not vanish"


def test_tau_and_normalisation_are_the_flags_where_they_are_given(authors, tmp_path):
    convert(authors, tmp_path / "gpm", "authors", tau=2.5, normalize=False)
    got = GPM.from_pretrained(tmp_path / "gpm", device="cpu").score(PROMPT, RESPONSES)["scores"]
    want = slow_scores(authors, normalize=False, tau=2.5)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), atol=1e-5, rtol=1e-5)


def test_an_odd_place_for_the_gate_or_the_bos_would_be_seen(authors, tmp_path):
    """The comparison above is sharp: with our own conventions the same weights score otherwise."""
    convert(authors, tmp_path / "gpm", "authors")
    file = tmp_path / "gpm/config.json"
    config = json.loads(file.read_text())
    want = torch.tensor(slow_scores(authors, normalize=True, tau=0.1))
    for change in ({"generation_prompt": True}, {"bos": "one"}, {"eos": "append"}, {"gate": "softmax_scaled"}):
        file.write_text(json.dumps(config | {"gpm": config["gpm"] | change}))
        got = torch.tensor(GPM.from_pretrained(tmp_path / "gpm", device="cpu").score(PROMPT, RESPONSES)["scores"])
        assert (got - want).abs().max() > 1e-3, change


def test_what_was_decided_is_reported_and_written(authors, tmp_path):
    notes = []
    convert(authors, tmp_path / "gpm", "authors", log=notes.append)
    assert "tau 0.1: from the paper's settings of GPM-Gemma-2B" in notes
    assert "normalize true: from the paper's settings of GPM-Gemma-2B" in notes
    assert "dim 6, gate softmax: from the shapes of the tensors" in notes
    assert any("without the generation prompt" in note and "BOS" in note and "EOS" in note for note in notes)
    gpm = open_checkpoint(tmp_path / "gpm").gpm
    assert (gpm.generation_prompt, gpm.bos, gpm.eos, gpm.layout) == (False, "tokenizer", "replace", "gpm")
    config = json.loads((tmp_path / "gpm/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == 6


def test_the_files_keep_their_names_and_the_output_layer_is_gone(authors, tmp_path):
    convert(authors, tmp_path / "gpm", "authors")
    names = {path.name for path in (tmp_path / "gpm").iterdir()}
    # The first file held lm_head alone.
    assert {name for name in names if name.endswith(".safetensors")} == {
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    }
    assert "tokenizer.json" in names
    assert not names & {"README.md", "generation_config.json"}, "they speak of another kind of model"
    tensors = {}
    for file in (tmp_path / "gpm").glob("*.safetensors"):
        tensors |= load_file(file)
    index = json.loads((tmp_path / "gpm/model.safetensors.index.json").read_text())
    assert (
        set(index["weight_map"]) == set(tensors) == {name for name, _ in load_gpm(tmp_path / "gpm").named_parameters()}
    )
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    old = {}
    for file in authors.glob("*.safetensors"):
        old |= load_file(file)
    assert torch.equal(tensors["score.weight"], old["value_head.weight"])
    assert torch.equal(tensors["gate.weight"], old["prompt_head.weight"])
    assert all(torch.equal(tensor, old[name]) for name, tensor in tensors.items() if name.startswith("model."))


def test_a_hub_cache_knows_the_models_name(authors, tmp_path):
    snapshot = tmp_path / "models--general-preference--GPM-Gemma-2-9B/snapshots/0123abc"
    snapshot.parent.mkdir(parents=True)
    authors.rename(snapshot)
    notes = []
    convert(snapshot, tmp_path / "gpm", "authors", log=notes.append)
    assert "tau 0.1: from the paper's settings of GPM-Gemma-2-9B" in notes


def test_an_unknown_name_is_not_guessed_about(authors, tmp_path):
    path = authors.rename(tmp_path / "my-own-run")
    with pytest.raises(
        ValueError, match=r"'my-own-run' is not one of .*: give --tau T .* and --normalize .* or --no-norm"
    ):
        convert(path, tmp_path / "gpm", "authors")
    with pytest.raises(ValueError, match=r": give --normalize"):
        convert(path, tmp_path / "gpm", "authors", tau=0.1)
    with pytest.raises(ValueError, match=r": give --tau T \(the paper's: 0.1\)$"):
        convert(path, tmp_path / "gpm", "authors", normalize=True)
    assert not (tmp_path / "gpm").exists()
    notes = []
    assert convert(path, tmp_path / "gpm", "authors", tau=0.3, normalize=False, log=notes.append).tau == 0.3
    assert {"tau 0.3: as given", "normalize false: as given"} <= set(notes)


def test_a_gate_over_one_plane_is_left_out(tmp_path, new_tokenizer, new_config):
    """Its softmax is 1, and the authors' code ignores it."""
    path = make_authors(tmp_path / "GPM-Gemma-2B", new_tokenizer, new_config, dim=2)
    assert convert(path, tmp_path / "gpm", "authors").gate == "none"
    got = GPM.from_pretrained(tmp_path / "gpm", device="cpu").score(PROMPT, RESPONSES)
    assert got["gate"] is None
    want = slow_scores(path, normalize=True, tau=0.1)
    torch.testing.assert_close(torch.tensor(got["scores"]), torch.tensor(want), atol=1e-5, rtol=1e-5)


def test_straight_to_a_classifier_is_the_same_as_in_two_steps(authors, tmp_path):
    convert(authors, tmp_path / "direct", "authors", "classifier")
    convert(authors, tmp_path / "gpm", "authors")
    convert(tmp_path / "gpm", tmp_path / "two", "gpm", "classifier")
    assert {path.name for path in (tmp_path / "direct").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}
    for file in (tmp_path / "two").iterdir():
        assert file.read_bytes() == (tmp_path / "direct" / file.name).read_bytes(), file.name


def test_head_and_gate_of_different_files_find_back_to_them(authors, tmp_path):
    convert(authors, tmp_path / "gpm", "authors")
    weight_map = json.loads((tmp_path / "gpm/model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map["score.weight"] != weight_map["gate.weight"], "this test needs them apart"
    convert(tmp_path / "gpm", tmp_path / "classifier", "gpm", "classifier")
    convert(tmp_path / "classifier", tmp_path / "back", "classifier")
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    assert index["weight_map"] == weight_map
    for file in (tmp_path / "gpm").glob("*.safetensors"):
        old, new = load_file(file), load_file(tmp_path / "back" / file.name)
        assert set(old) == set(new)
        assert all(torch.equal(old[name], new[name]) for name in old)


# What is wrong with a directory


def edit_tensors(path, change):
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    (path / "model.safetensors.index.json").unlink(missing_ok=True)


@pytest.fixture
def single(tmp_path, new_tokenizer, new_config):
    """One file, so that tensors can be taken out without an index."""
    return make_authors(tmp_path / "GPM-Gemma-2B", new_tokenizer, new_config, shards=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("value_head.weight"), "no tensor value_head.weight.*is it a language model"),
        (lambda t: t.update({"score.weight": t.pop("value_head.weight")}), "no tensor value_head.weight.*--from bt"),
        (
            lambda t: t.update({"value_head.weight": torch.ones(1, 32)}),
            "one row, a Bradley-Terry reward: use --from bt",
        ),
        (lambda t: t.update({"value_head.weight": torch.ones(5, 32)}), "5 rows, but an embedding has an even number"),
        (
            lambda t: t.update({"value_head.weight": torch.ones(6, 31)}),
            r"value_head.weight is \[6, 31\], .* \[6, 32\]",
        ),
        (lambda t: t.update({"value_head.weight": torch.ones(())}), r"value_head.weight is \[\]"),
        (
            lambda t: t.update({"prompt_head.weight": torch.ones(6, 32)}),
            r"prompt_head.weight is \[6, 32\], .* \[3, 32\]",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("model.")],
            r"no tensor model\.\*, so no trunk",
        ),
    ],
)
def test_tensors_that_are_not_the_authors_are_one_line(single, tmp_path, change, match):
    edit_tensors(single, change)
    refused(single, tmp_path / "gpm", match)


def refused(path, target, match, from_="authors", **options):
    with pytest.raises(ValueError, match=match) as error:
        convert(path, target, from_, **options)
    assert "\n" not in str(error.value)
    assert not target.exists()
    assert not [file for file in target.parent.iterdir() if file.name.startswith(f".{target.name}")]


def test_files_that_are_missing_or_damaged_are_one_line(authors, tmp_path):
    index = authors / "model.safetensors.index.json"
    text = index.read_text()
    index.unlink()
    refused(authors, tmp_path / "gpm", "several files, but no model.safetensors.index.json")
    index.write_text(text.replace("value_head.weight", "value_head.bias"))
    refused(authors, tmp_path / "gpm", "says that value_head.bias is in model-0000.*, where it is not")
    index.write_text(text.replace("model-00001", "../model-00001"))
    refused(authors, tmp_path / "gpm", "outside the directory")
    index.write_text(text)
    shard = authors / "model-00003-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    refused(authors, tmp_path / "gpm", "model-00003-of-00003.safetensors is missing or damaged")
    shard.unlink()
    refused(authors, tmp_path / "gpm", "model-00003-of-00003.safetensors is missing or damaged")
    shard.write_bytes(whole)
    for file in authors.glob("tokenizer*"):
        file.unlink()
    refused(authors, tmp_path / "gpm", "holds no tokenizer that transformers can read")


def test_a_tokenizer_without_chat_template_is_one_line(authors, new_tokenizer, tmp_path):
    (authors / "chat_template.jinja").unlink()
    refused(authors, tmp_path / "gpm", "no chat template, which the authors' models use")


def test_the_wrong_source_layout_is_one_line(authors, gpm_checkpoint, tmp_path):
    refused(gpm_checkpoint, tmp_path / "gpm", "is a GPM already .*use --from gpm")
    refused(
        authors, tmp_path / "gpm", "value_head.weight has 6 rows, a reward has one: use --from authors", from_="bt"
    )
    refused(authors, tmp_path / "gpm", "is not a GPM .*convert --from authors", from_="gpm", to="classifier")
    refused(authors, tmp_path / "gpm", "is not a GPM .*convert --from authors", from_="classifier")
    with pytest.raises(ValueError, match="convert --from authors"):
        load_gpm(authors)
