"""Nothing of a model's folder runs, opens files elsewhere or loops for ever, unless the user passes a flag for it."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from openrlhf.cli import train_ppo_ray, train_rm

from openrlhf_gpm.checkpoints import trust
from openrlhf_gpm.checkpoints.checkpoint import load_gpm, open_checkpoint, save_gpm
from openrlhf_gpm.cli import main as cli

CODE = """\
from pathlib import Path
from transformers import LlamaConfig, PreTrainedTokenizerFast

Path({marker!r}).write_text("ran")

class OwnConfig(LlamaConfig):
    model_type = "owntype"

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
GROUP = {"prompt": "Name a prime.", "responses": ["7", "9"]}
PAIR = {"prompt": "Name a prime.", "chosen": "7", "rejected": "9"}


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def folder(tmp_path, gpm_checkpoint, marker) -> Path:
    """A GPM in a folder with a module that leaves a file behind when it is imported."""
    path = Path(shutil.copytree(gpm_checkpoint, tmp_path / "m"))
    (path / "own.py").write_text(CODE.format(marker=str(marker)))
    return path


def config_code(path: Path) -> str:
    edit(path / "config.json", auto_map={"AutoConfig": "own.OwnConfig"}, model_type="owntype")
    return "auto_map in config.json"


def tokenizer_code(path: Path) -> str:
    edit(path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    return "auto_map in tokenizer_config.json"


def kernel(path: Path) -> str:
    edit(path / "config.json", attn_implementation="somebody/kernel")
    return "attn_implementation in config.json"


def command(name: str, model: Path, tmp_path: Path) -> list[str]:
    """A command line of each command that loads a model."""
    (tmp_path / "groups.jsonl").write_text(json.dumps(GROUP) + "\n")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    out = str(tmp_path / "out")
    return {
        "score": ["score", "--model", str(model), "--input", str(tmp_path / "groups.jsonl"), "--output", out],
        "embed": ["embed", "--model", str(model), "--input", str(tmp_path / "groups.jsonl"), "--output", out],
        "winrate": [
            *("winrate", "--model", str(model), "--output", out),
            *("--answers", f"a={tmp_path / 'groups.jsonl'}", f"b={tmp_path / 'groups.jsonl'}"),
        ],
        "serve": ["serve", "--model", str(model), "--port", "0"],
        "eval": ["eval", "--model", str(model), "--data", str(tmp_path / "pairs.jsonl"), "--output", out],
        "convert": ["convert", "--from", "gpm", "--to", "classifier", "--input", str(model), "--output", out],
        "check": ["data", "check", str(tmp_path / "pairs.jsonl"), "--model", str(model)],
    }[name]


@pytest.mark.parametrize("source", [config_code, tokenizer_code, kernel])
@pytest.mark.parametrize("name", ["score", "embed", "winrate", "serve", "eval", "convert", "check"])
def test_a_yes_on_stdin_is_no_consent(name, source, folder, marker, tmp_path, monkeypatch, capsys):
    named = source(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert cli.main(command(name, folder, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line
    assert "--trust_remote_code" in line
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_a_real_process_with_a_yes_in_its_pipe_runs_nothing(folder, marker, tmp_path):
    config_code(folder)
    argv = [sys.executable, "-m", "openrlhf_gpm.cli.main", *command("score", folder, tmp_path)]
    done = subprocess.run(argv, input="y\n", capture_output=True, text=True)
    assert done.returncode == 2
    assert not marker.exists()
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_flag_is_the_consent(folder, marker, tmp_path):
    tokenizer_code(folder)
    argv = [*command("score", folder, tmp_path), "--device", "cpu", "--trust_remote_code"]
    assert cli.main(argv) == 0
    assert marker.read_text() == "ran"


@pytest.mark.parametrize("source", [config_code, tokenizer_code])
def test_train_rm_refuses_before_openrlhf_would_run_it(source, folder, marker, capsys):
    named = source(folder)
    flags = ["--reward_model_type", "gpm", "--data.dataset", "any", "--model.model_name_or_path", str(folder)]
    flags += ["--data.max_len", "128"]
    with pytest.raises(SystemExit, match="2"):
        train_rm.parse_args(flags)
    assert named in capsys.readouterr().err
    assert not marker.exists()
    if source is tokenizer_code:
        assert train_rm.parse_args([*flags, "--trust_remote_code"]).trust_remote_code


@pytest.mark.parametrize("role", ["actor", "reward", "critic"])
def test_train_ppo_ray_refuses_code_in_each_of_its_models(role, folder, gpm_checkpoint, marker, capsys):
    named = tokenizer_code(folder)
    models = {"actor": "policy", "reward": str(gpm_checkpoint), role: str(folder)}
    flags = [flag for name, path in models.items() for flag in (f"--{name}.model_name_or_path", path)]
    flags += ["--actor.policy_loss_type", "ppo" if role == "critic" else "gpo"]
    with pytest.raises(SystemExit, match="2"):
        train_ppo_ray.parse_args(
            [
                *("--reward_model_type", "gpm", "--algo.kl.init_coef", "0"),
                *("--rollout.n_samples_per_prompt", "4", *flags),
            ]
        )
    err = capsys.readouterr().err
    assert named in err
    assert f"--{role}.model_name_or_path" in err
    assert not marker.exists()


def test_an_adapter_s_base_model_is_looked_at_too(folder, tmp_path, marker):
    tokenizer_code(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with pytest.raises(ValueError, match=r"auto_map in tokenizer_config.json"):
        open_checkpoint(adapter)
    assert not marker.exists()


class Runs:
    """Its pickle runs code when it is loaded without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "ran")


def test_a_pickle_is_never_run(folder, tmp_path, marker):
    """Weights are safetensors; an adapter's .bin, which OpenRLHF writes under ZeRO-3, may hold tensors only."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(folder / "config.json", adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    torch.save({"base_model.model.score.weight": Runs(marker)}, adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin is damaged, or holds more than tensors"):
        load_gpm(adapter)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(marker)))
    with pytest.raises(ValueError, match="save it again as safetensors"):
        load_gpm(folder)
    assert not marker.exists()


def test_no_file_outside_the_folder_is_named(folder):
    edit(folder / "tokenizer_config.json", vocab_file="/etc/hostname")
    with pytest.raises(ValueError, match=r"vocab_file in tokenizer_config.json is /etc/hostname, outside the folder"):
        open_checkpoint(folder)
    edit(folder / "tokenizer_config.json", vocab_file=None, special_tokens_map_file="/mnt/saved/it.json")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ValueError, match=r"names the file '../x.safetensors', outside"):
        open_checkpoint(folder)


def test_a_template_that_loops_ends(new_gpm, new_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "TEMPLATE_SECONDS", 0.5)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    save_gpm(new_gpm(), new_tokenizer(endless), tmp_path / "m")
    with pytest.raises(ValueError, match=r"did not end within 0.5 s"):
        open_checkpoint(tmp_path / "m").formatter()


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{% set _ = messages.append(1) %}"])
def test_a_template_stays_in_its_sandbox(template, new_gpm, new_tokenizer, tmp_path):
    save_gpm(new_gpm(), new_tokenizer(template), tmp_path / "m")
    with pytest.raises(ValueError, match="reaches outside itself"):
        open_checkpoint(tmp_path / "m").formatter()
