import pytest
import yaml
from huggingface_hub import ModelCard

from openrlhf_gpm.checkpoints.card import write_model_card
from openrlhf_gpm.config import GPMConfig


def write(directory, **changes):
    values = {
        "config": GPMConfig(dim=6, tau=0.25),
        "base_model": "google/gemma-2b-it",
        "data": ["OpenRLHF/preference_dataset_mixture2_and_safe_pku"],
        "metrics": {"accuracy": 0.71875, "rewardbench": {"chat": 0.5, "chat_hard": 1}},
        "command": "deepspeed --module openrlhf.cli.train_rm --reward_model_type gpm --gpm.dim 6",
    }
    return write_model_card(directory, **(values | changes)).read_text(encoding="utf-8")


def test_the_card_is_one_that_the_hub_reads(tmp_path):
    write(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "google/gemma-2b-it"
    assert card.data.library_name == "openrlhf-gpm"
    assert "reward-model" in card.data.tags
    assert card.data.license is None, "whoever publishes the model chooses its license"


def test_the_card_says_settings_metrics_data_and_command(tmp_path):
    text = write(tmp_path)
    for line in (
        "| dim | `6` |",
        "| tau | `0.25` |",
        "| gate | `softmax_scaled` |",
        "| accuracy | 0.7188 |",
        "| rewardbench / chat | 0.5 |",
        "| rewardbench / chat_hard | 1 |",
        "Data: `OpenRLHF/preference_dataset_mixture2_and_safe_pku`.",
        "deepspeed --module openrlhf.cli.train_rm --reward_model_type gpm --gpm.dim 6",
        "openrlhf-gpm score --model DIR --input groups.jsonl --output scores.jsonl",
        'gpm = GPM.from_pretrained("DIR")',
    ):
        assert line in text.splitlines(), line
    assert "a vector of 6 numbers" in text


def test_the_python_of_the_card_runs(gpm_checkpoint, tmp_path):
    text = write(tmp_path)
    code = text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace('"DIR"', repr(str(gpm_checkpoint))), names)
    assert tuple(names["scores"].shape) == (3, 3)


@pytest.mark.parametrize(
    ("head", "words"), [("reward", "Bradley-Terry reward model"), ("pairwise", "A pairwise encoder")]
)
def test_the_other_heads_are_not_called_general(tmp_path, head, words):
    config = GPMConfig(head=head, dim=2, gate="none", normalize=False)
    text = write(tmp_path, config=config)
    assert words in text
    assert "General Preference Model" not in text
    assert "gpm" not in yaml.safe_load(text.split("---")[1])["tags"]


def test_paths_of_the_machine_do_not_reach_the_card(tmp_path):
    (tmp_path / "base").mkdir()
    text = write(tmp_path, base_model=str(tmp_path / "base"), data=[str(tmp_path / "pairs.jsonl")], command=None)
    assert str(tmp_path) not in text
    assert "Trained from `base` with" in text
    assert "Data: `pairs.jsonl`." in text
    assert "base_model" not in yaml.safe_load(text.split("---")[1]), "a folder is no name on the Hub"


def test_paths_from_the_root_in_the_command_lose_their_folders(tmp_path):
    text = write(
        tmp_path, command="train --data.dataset /data/a.jsonl,/data/b.jsonl:train --x=/m/base --y me/model 1/2"
    )
    assert "train --data.dataset a.jsonl,b.jsonl:train --x=base --y me/model 1/2" in text


def test_keys_and_passwords_of_the_command_are_masked_and_nothing_else(tmp_path):
    text = write(tmp_path, command="train --logger.wandb.key abc123 --hf_token=abc123 --data.prompt_key prompt --x 1")
    assert "abc123" not in text
    assert "train --logger.wandb.key *** --hf_token=*** --data.prompt_key prompt --x 1" in text


def test_without_metrics_data_and_command_the_card_says_so_or_nothing(tmp_path):
    text = write(tmp_path, metrics={}, data=[], command=None)
    assert "## Metrics" not in text
    assert "Data: not recorded." in text
    assert text.count("```") == 4


def test_what_would_break_the_markdown_is_kept_in_its_cell(tmp_path):
    config = GPMConfig(chat_template=False, input_template="Q: {}\n| A:")
    text = write(tmp_path, config=config, metrics={"a|b": float("nan")}, command="echo ```x```")
    assert r"| input_template | `Q: {} \| A:` |" in text
    assert r"| a\|b | nan |" in text
    assert "````\necho ```x```\n````" in text


def test_an_old_card_is_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "README.md").write_text("old")
    assert "old" not in write(tmp_path).split()
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(ValueError, match="is not a directory: save the checkpoint before its model card"):
        write(tmp_path / "nowhere")
