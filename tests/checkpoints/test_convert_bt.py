"""Bradley-Terry reward models become GPMs with the same preferences."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openrlhf_gpm.checkpoints.checkpoint import load_gpm
from openrlhf_gpm.checkpoints.convert import convert
from openrlhf_gpm.scoring.scorer import GPM

PROMPT, RESPONSES = "Name a prime.", ["Seven.", "Nine is not a prime.", "Paris, I am fine."]


@pytest.fixture
def upstream():
    """OpenRLHF's own builder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from openrlhf.models import get_llm_for_sequence_regression

    def build(path: Path, prefix: str = "score", normalize_reward: bool = False):
        return get_llm_for_sequence_regression(
            str(path),
            "reward",
            param_dtype="fp32",
            attn_implementation="sdpa",
            value_head_prefix=prefix,
            normalize_reward=normalize_reward,
        ).eval()

    return build


def make_base(path: Path, new_config) -> Path:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(new_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("prefix", "normalize"), [("score", False), ("value_head", False), ("v_head", True), ("score", True)]
)
def test_scores_are_the_differences_of_upstreams_rewards(
    tmp_path, new_config, chat_tokenizer, upstream, prefix, normalize
):
    model = upstream(make_base(tmp_path / "base", new_config), prefix, normalize)
    with torch.no_grad():
        getattr(model, prefix).weight.normal_()
    # As train_rm leaves them.
    model.config.value_head_prefix = prefix
    model.config.mean, model.config.std = 0.7, 2.5
    model.save_pretrained(tmp_path / "bt")
    chat_tokenizer.save_pretrained(tmp_path / "bt")
    assert json.loads((tmp_path / "bt/config.json").read_text())["architectures"] == ["RewardModel"]

    notes = []
    config = convert(tmp_path / "bt", tmp_path / "gpm", "bt", log=notes.append)
    assert (config.head, config.dim, config.gate, config.normalize) == ("reward", 2, "none", False)
    assert config.tau == (2.5 if normalize else 1.0)
    expected = "by which normalize_reward" if normalize else "mean and std in config.json are not in use"
    assert any(note.startswith("tau ") and expected in note for note in notes)

    gpm = GPM.from_pretrained(tmp_path / "gpm", device="cpu")
    again = upstream(tmp_path / "bt", normalize_reward=normalize)  # reads value_head_prefix itself
    # OpenRLHF 0.11 reads mean and std too, but transformers 5 builds the model without memory and drops such buffers.
    again.mean.fill_(0.7)
    again.std.fill_(2.5)
    rewards = []
    for response in RESPONSES:
        ids = torch.tensor([gpm.formatter.encode(PROMPT, response).input_ids])
        with torch.no_grad():
            rewards.append(again(ids, torch.ones_like(ids)).item())
    want = torch.tensor([[r - s for s in rewards] for r in rewards])
    assert want.abs().max() > 0.1
    result = gpm.score(PROMPT, RESPONSES)
    torch.testing.assert_close(torch.tensor(result["scores"]), want, atol=1e-6, rtol=1e-6)
    assert [v[1] for v in result["embeddings"]] == [1, 1, 1]
    assert result["cyclic_share"] < 1e-6


@pytest.fixture
def bt(tmp_path, new_config, chat_tokenizer):
    """An ordinary reward model: one label."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    model = LlamaForSequenceClassification(new_config(num_labels=1))
    model.save_pretrained(tmp_path / "bt")
    chat_tokenizer.save_pretrained(tmp_path / "bt")
    return tmp_path / "bt"


def test_an_ordinary_reward_model_there_and_back(bt, tmp_path):
    """bt -> gpm -> classifier is the model that we started from, tensor by tensor."""
    from transformers import AutoModelForSequenceClassification

    convert(bt, tmp_path / "gpm", "bt")
    convert(tmp_path / "gpm", tmp_path / "classifier", "gpm", "classifier")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert (type(plain).__name__, plain.config.num_labels) == ("LlamaForSequenceClassification", 1)
    old = load_file(bt / "model.safetensors")
    new = load_file(tmp_path / "classifier/model.safetensors")
    assert set(old) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_tau_can_be_given(bt, tmp_path):
    notes = []
    assert convert(bt, tmp_path / "gpm", "bt", tau=3.0, log=notes.append).tau == 3.0
    assert "tau 3.0: as given" in notes


def test_without_a_chat_template_the_gpm_reads_plain_text_and_says_so(bt, tmp_path):
    (bt / "chat_template.jinja").unlink()
    notes = []
    assert not convert(bt, tmp_path / "gpm", "bt", log=notes.append).chat_template
    assert "formatting: plain text, one BOS, one EOS" in notes


def edit(path: Path, change) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_a_bias_of_the_head_cancels_and_is_left_out(bt, tmp_path):
    edit(bt, lambda t: t.update({"score.bias": torch.ones(1), "lm_head.weight": torch.ones(320, 32)}))
    notes = []
    convert(bt, tmp_path / "gpm", "bt", log=notes.append)
    assert "score.bias: left out, it cancels in every difference of rewards" in notes
    assert not {"score.bias", "lm_head.weight"} & set(load_file(tmp_path / "gpm/model.safetensors"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("score.weight"), r"no reward head: none of the tensors score.weight, value_head.weight"),
        (lambda t: t.update({"score.weight": torch.ones(2, 32)}), "2 rows, a reward has one: it is not a Bradley"),
        (
            lambda t: t.update({"value_head.weight": torch.ones(4, 32)}) or t.pop("score.weight"),
            "4 rows, a reward has one: use --from authors",
        ),
        (lambda t: t.update({"score.weight": torch.ones(1, 16)}), r"score.weight is \[1, 16\], .* \[1, 32\]"),
    ],
)
def test_a_head_that_is_not_a_reward_is_one_line(bt, tmp_path, change, match):
    edit(bt, change)
    with pytest.raises(ValueError, match=match) as error:
        convert(bt, tmp_path / "gpm", "bt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "gpm").exists()


def test_a_std_that_cannot_be_a_scale_is_one_line(bt, tmp_path):
    config = json.loads((bt / "config.json").read_text())
    (bt / "config.json").write_text(json.dumps(config | {"normalize_reward": True, "mean": 0.0, "std": 0.0}))
    with pytest.raises(ValueError, match=r"--gpm.tau must be a finite number > 0, got 0"):
        convert(bt, tmp_path / "gpm", "bt")


def test_scoring_a_reward_model_as_it_is_names_the_command(bt):
    with pytest.raises(ValueError, match=r"Bradley-Terry reward model .*convert --from bt"):
        load_gpm(bt)
