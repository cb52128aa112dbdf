"""What a node says about itself, asked without Ray."""

import importlib.metadata

import pytest

from openrlhf_gpm.trainer.policy import node
from openrlhf_gpm.trainer.policy.node import Question, answer


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345")
    return folder


def test_a_node_with_everything_reports_its_versions_and_the_models_files(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "probe").touch()
    question = Question(
        models={"--reward.model_name_or_path": str(model)},
        files={"--data.prompt_dataset": [str(model / "config.json")]},
        shared={"--ckpt.output_dir": str(tmp_path / "out")},
        probe="probe",
    )
    found = answer(question)
    assert found["problems"] == {}
    assert found["versions"]["ray"] == importlib.metadata.version("ray")
    assert "missing" not in found["versions"].values()
    assert found["models"] == {"--reward.model_name_or_path": "config.json 2 bytes, model.safetensors 5 bytes"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["probe"]


def test_what_a_node_cannot_read_is_named_with_its_flag(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "SHARED_SECONDS", 0.0)
    question = Question(
        models={
            "--actor.model_name_or_path": str(tmp_path / "policy"),
            "--reward.model_name_or_path": "no-org/no-gpm",
        },
        files={"--data.prompt_dataset": [str(tmp_path / "prompts.jsonl")]},
        shared={"--ckpt.output_dir": str(tmp_path)},
        probe="written-on-another-disk",
    )
    problems = answer(question)["problems"]
    assert problems["--actor.model_name_or_path"].startswith(f"cannot read --actor.model_name_or_path {tmp_path}")
    assert "HF_TOKEN" in problems["--reward.model_name_or_path"]
    assert str(tmp_path / "prompts.jsonl") in problems["--data.prompt_dataset"]
    assert "storage that all nodes share" in problems["--ckpt.output_dir"]
    assert [problem for problem in problems.values() if "\n" in problem] == []
