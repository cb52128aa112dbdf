"""The real stack on CPU: DeepSpeed processes, a private Ray cluster, vLLM engines. Tiny models made from a config."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"w{i}" for i in range(60)]
VOCABULARY = 2048
"""Rows of the embedding; 64 columns make it larger than what ZeRO-3 keeps on every rank, so that it is gathered."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def cpu_env() -> dict[str, str]:
    """The environment that examples/cpu/env.sh sets, the one that users and the quickstart run with."""
    print_env = "import json, os; print(json.dumps(dict(os.environ)))"
    shell = f"set -a; . {ROOT}/examples/cpu/env.sh; {sys.executable} -c '{print_env}'"
    env: dict[str, str] = json.loads(subprocess.check_output(["bash", "-c", shell], text=True))
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    return env | {"OMP_NUM_THREADS": "1"}  # several processes share the cores


@dataclass
class World:
    """Tiny models, preference pairs and prompts in one folder."""

    folder: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [f"w{i}" for i in range(VOCABULARY - len(special))]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    wordlevel = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    wordlevel.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordlevel, **roles)
    # A trunk at transformers' default scale (0.02) gives every text nearly one hidden state, unlike any trained model.
    for name, tied, scale in (("base", False, 0.3), ("policy", False, 0.02), ("tied_policy", True, 0.02)):
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,  # vLLM's CPU attention knows no heads narrower than 32
            num_key_value_heads=1,
            max_position_embeddings=128,
            tie_word_embeddings=tied,
            initializer_range=scale,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    dice = random.Random(0)

    def text(length: int) -> str:
        return " ".join(dice.choices(WORDS, k=length))

    pairs = [{"prompt": text(4) + " ", "chosen": text(3), "rejected": text(dice.randint(2, 5))} for _ in range(64)]
    prompts = [{"prompt": text(4) + " "} for _ in range(32)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "prompts.jsonl", prompts)
    return World(folder)


class Stack:
    """Runs OpenRLHF's commands on the tiny world and reads what they leave behind."""

    def __init__(self, world: World, env: dict[str, str]) -> None:
        self.world, self.env = world, env

    def run(self, command: list[str], log: Path, env: dict[str, str] | None = None, timeout: float = 400) -> str:
        """Run to the end and return the log, whose tail is the failure message."""
        with log.open("w") as out:
            process = subprocess.Popen(
                command, env=env or self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(timeout)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        text = log.read_text(errors="replace")
        assert code == 0, f"{' '.join(command[:4])} exited with {code}:\n{text[-6000:]}"
        return text

    def train_rm(self, out: Path, *flags: str, ranks: int = 1, env: dict[str, str] | None = None) -> dict[str, list]:
        """`openrlhf.cli.train_rm` on the world's pairs; returns its TensorBoard curves. The model is in `out`."""
        out.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"),
            *(f"--master-port={free_port()}", "-m", "openrlhf.cli.train_rm"),
            *("--model.model_name_or_path", self.world["base"]),
            *("--data.dataset", self.world["pairs.jsonl"], "--data.prompt_key", "prompt", "--data.max_len", "64"),
            *("--eval.dataset", self.world["pairs.jsonl"]),
            *("--ds.param_dtype", "fp32", "--ds.attn_implementation", "sdpa", "--ds.zero_stage", "2"),
            *("--train.micro_batch_size", "8", "--train.batch_size", "16", "--adam.lr", "1e-3"),
            *("--ckpt.output_dir", str(out), "--ckpt.path", f"{out}_ckpt"),
            *("--logger.tensorboard_dir", f"{out}_tb", "--logger.wandb.run_name", "run"),
        ]
        self.run([*command, *flags], out.with_suffix(".log"), env)
        return read_scalars(Path(f"{out}_tb"))

    def ppo_command(self, out: Path, *flags: str) -> list[str]:
        """`openrlhf.cli.train_ppo_ray`, 4 steps of 8 prompts with 4 responses; the log-probs of vLLM are recorded."""
        return [
            *(sys.executable, "-m", "openrlhf.cli.train_ppo_ray"),
            *("--actor.model_name_or_path", self.world["policy"], "--ds.param_dtype", "fp32"),
            *("--ds.attn_implementation", "sdpa", "--ds.zero_stage", "2", "--algo.kl.init_coef", "0"),
            *("--actor.num_gpus_per_node", "1", "--reward.num_gpus_per_node", "1", "--vllm.num_engines", "1"),
            *("--vllm.sync_backend", "gloo", "--vllm.enforce_eager", "--data.prompt_dataset"),
            *(self.world["prompts.jsonl"], "--data.input_key", "prompt", "--data.max_len", "32"),
            *("--rollout.max_new_tokens", "8", "--rollout.batch_size", "8", "--rollout.n_samples_per_prompt", "4"),
            *("--rollout.micro_batch_size", "8", "--train.batch_size", "32", "--train.micro_batch_size", "8"),
            *("--train.max_epochs", "2", "--actor.adam.lr", "1e-3", "--actor.lr_scheduler", "constant"),
            *("--algo.advantage.is_correction_level", "token"),
            *("--ckpt.output_dir", str(out), "--ckpt.path", f"{out}_ckpt"),
            *("--logger.tensorboard_dir", f"{out}_tb", "--logger.wandb.run_name", "run"),
            *flags,
        ]

    def train_ppo_ray(self, out: Path, *flags: str, env: dict[str, str]) -> dict[str, list[float]]:
        """Run `ppo_command`; returns its TensorBoard curves."""
        self.run(self.ppo_command(out, *flags), Path(f"{out}.log"), env)
        return read_scalars(Path(f"{out}_tb"))

    def read_jsonl(self, path: Path) -> list[dict]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def read_scalars(self, folder: Path) -> dict[str, list[float]]:
        return read_scalars(folder)

    def write_jsonl(self, path: Path, rows: list[dict]) -> None:
        write_jsonl(path, rows)


def read_scalars(folder: Path) -> dict[str, list[float]]:
    """Every TensorBoard curve below `folder`, in the order of the steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, list[float]] = {}
    for file in sorted(folder.rglob("events.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    return curves


@pytest.fixture(scope="session")
def stack(world: World, cpu_env: dict[str, str]) -> Stack:
    return Stack(world, cpu_env)


@pytest.fixture(scope="session")
def gpm(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated GPM, two epochs old."""
    out = tmp_path_factory.mktemp("rewards") / "gpm"
    stack.train_rm(out, "--reward_model_type", "gpm", "--gpm.dim", "4", "--train.max_epochs", "2")
    return out


@pytest.fixture(scope="session")
def bt(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's Bradley-Terry reward model on the same pairs."""
    out = tmp_path_factory.mktemp("rewards") / "bt"
    stack.train_rm(out)
    return out


@pytest.fixture(scope="session")
def ray_env(cpu_env: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a private Ray cluster with 8 logical GPUs, stopped at the end without touching any other."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="gpmray")  # a socket path must be short
    command = [
        *("ray", "start", "--head", "--block", f"--port={port}", "--num-gpus=8", "--num-cpus=16"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
        "--object-store-memory=300000000",
    ]
    head = subprocess.Popen(
        command, env=cpu_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert head.stdout is not None
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail(f"ray start exited with {head.wait()}")
    yield cpu_env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    os.killpg(head.pid, signal.SIGTERM)
    head.communicate(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)
