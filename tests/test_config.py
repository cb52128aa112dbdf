import warnings
from types import SimpleNamespace

import pytest

from openrlhf_gpm.config import GPMConfig


def test_the_defaults_are_those_of_the_documentation():
    config = GPMConfig()
    assert (config.dim, config.gate, config.normalize, config.tau) == (8, "softmax_scaled", True, 0.1)
    assert (config.k, config.gated) == (4, True)
    assert (config.head, config.head_rows, config.scalar_head, config.learn_tau) == ("embedding", 8, False, False)
    assert (config.generation_prompt, config.bos, config.eos, config.layout) == (True, "one", "append", "gpm")


def test_a_round_trip_through_a_dict_changes_nothing():
    config = GPMConfig(dim=6, gate="none", tau=1, chat_template=False, input_template="Q: {}\n", max_len=99)
    assert GPMConfig.from_dict(config.to_dict()) == config
    authors = GPMConfig(gate="softmax", generation_prompt=False, bos="tokenizer", eos="replace", layout="classifier")
    assert GPMConfig.from_dict(authors.to_dict()) == authors
    assert GPMConfig.from_pretrained_config(SimpleNamespace(gpm=config.to_dict())) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 7}, "--gpm.dim must be an even number >= 2, got 7; try 8"),
        ({"dim": 0}, "--gpm.dim must be an even number >= 2, got 0"),
        ({"dim": 4.0}, "--gpm.dim must be an even number"),
        ({"gate": "sigmoid"}, "--gpm.gate must be one of none, softmax, softmax_scaled, softplus; got 'sigmoid'"),
        ({"tau": 0}, "--gpm.tau must be a finite number > 0, got 0"),
        ({"tau": float("nan")}, "--gpm.tau"),
        ({"tau": float("inf")}, "--gpm.tau"),
        ({"tau": "0.1"}, "--gpm.tau"),
        ({"normalize": "yes"}, "`gpm.normalize` in config.json must be true or false, got 'yes'"),
        ({"learn_tau": 1}, "`gpm.learn_tau` in config.json must be true or false, got 1"),
        ({"chat_template": None}, "`gpm.chat_template` in config.json must be true or false"),
        ({"generation_prompt": "no"}, "`gpm.generation_prompt` in config.json must be true or false"),
        ({"head": "bt"}, "--gpm.head must be one of embedding, reward, pairwise; got 'bt'"),
        ({"bos": "two"}, "--gpm.bos must be one of one, tokenizer; got 'two'"),
        ({"eos": True}, "--gpm.eos must be one of append, replace; got True"),
        ({"layout": ["gpm"]}, "--gpm.layout must be one of gpm, classifier; got"),
        ({"pool": "max"}, "--gpm.pool must be one of last, mean; got 'max'"),
        ({"pool": "mean", "layout": "classifier"}, "--gpm.pool mean needs layout gpm"),
        ({"max_len": 2}, "--data.max_len"),
        ({"input_template": "Q: "}, "--data.input_template"),
        ({"input_template": "{} {}"}, "--data.input_template"),
        ({"input_template": "{prompt}"}, "--data.input_template"),
        ({"input_template": "{"}, "--data.input_template"),
    ],
)
def test_a_wrong_value_names_its_flag(changes, message):
    with pytest.raises(ValueError, match="^" + message.replace("{", r"\{")):
        GPMConfig(**changes)


@pytest.mark.parametrize("head", ["reward", "pairwise"])
def test_a_scalar_head_has_one_row_and_an_embedding_of_two_numbers(head):
    config = GPMConfig(head=head, dim=2, gate="none", normalize=False, tau=1)
    assert (config.scalar_head, config.head_rows, config.dim, config.k) == (True, 1, 2, 1)


@pytest.mark.parametrize("change", [{"dim": 4}, {"gate": "softplus"}, {"normalize": True}])
def test_a_scalar_head_refuses_what_only_an_embedding_has(change):
    with pytest.raises(ValueError, match=r"--gpm.head reward .* needs --gpm.dim 2, --gpm.gate none and --gpm.no_norm"):
        GPMConfig(**({"head": "reward", "dim": 2, "gate": "none", "normalize": False} | change))


@pytest.mark.parametrize("gate", ["softmax", "softmax_scaled"])
def test_a_softmax_over_one_plane_is_constant_and_warned_about(gate):
    with pytest.warns(UserWarning, match="--gpm.gate .* is constant with --gpm.dim 2"):
        GPMConfig(dim=2, gate=gate)


@pytest.mark.parametrize("gate", ["none", "softplus"])
def test_one_plane_with_another_gate_is_no_reason_to_warn(gate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GPMConfig(dim=2, gate=gate)


def test_a_format_of_the_future_asks_for_an_upgrade():
    with pytest.raises(ValueError, match=r"format_version 3.*upgrade"):
        GPMConfig.from_dict({"dim": 8, "format_version": 3})
    with pytest.raises(ValueError, match=r"unknown keys depth, width.*upgrade"):
        GPMConfig.from_dict({"dim": 8, "width": 1, "depth": 2})
    with pytest.raises(ValueError, match="must be an object"):
        GPMConfig.from_dict([8])


@pytest.mark.parametrize("kind", ["RewardModel", "LlamaForSequenceClassification"])
def test_a_bradley_terry_model_is_recognised(kind):
    with pytest.raises(ValueError, match=f"{kind} is a Bradley-Terry reward model .*convert --from bt"):
        GPMConfig.from_pretrained_config(SimpleNamespace(architectures=[kind]))


@pytest.mark.parametrize("kinds", [["LlamaForCausalLM"], None])
def test_a_language_model_is_no_gpm(kinds):
    with pytest.raises(ValueError, match=r"is not a GPM .*--reward_model_type gpm"):
        GPMConfig.from_pretrained_config(SimpleNamespace(architectures=kinds))
