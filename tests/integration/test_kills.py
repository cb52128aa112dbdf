"""Kill -9 of every part of a run at every moment of its life: the same command, started again, ends as if undisturbed.

One self-play of two passes is killed six times. A named pipe in the place of a file of a checkpoint keeps the rank
that writes it inside the save for as long as the kill takes, so no test waits for a time or hopes to be quick.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from ray_nodes import OUTPUT, Cluster, running
from safetensors.torch import load_file

pytestmark = pytest.mark.recipes

SECONDS = 30
"""Within which a run must end after a death."""

PATIENCE = 120
SHARD = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
RANK, ENGINE, REWARD = "ObjectivePolicyActor", "RolloutRayActor", "GPMRewardActor"


@dataclass
class Run:
    """A start of the self-play command."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def wait_for(self, words: str) -> None:
        """Read the output up to the line with these words."""
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return
        pytest.fail(f"the run ended with {self.process.wait()} before {words!r}: {''.join(self.lines[-60:])}")

    def until(self, happened: Callable[[], object]) -> None:
        """Look again and again, without giving the processor away."""
        end = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, f"the run ended: {self.process.stdout.read()[-6000:]}"
            assert time.monotonic() < end

    def kill(self, victims: list[psutil.Process]) -> None:
        """Kill the victims, wait for the end of the run, and note how long that took."""
        start = time.monotonic()
        for victim in victims:
            victim.kill()
        self.lines += self.process.communicate(timeout=400)[0].splitlines(keepends=True)
        self.seconds = time.monotonic() - start

    @property
    def text(self) -> str:
        return "".join(self.lines)


class Passes:
    """Two passes with a magnet over 17 prompts each, 5 responses per prompt; two ZeRO-3 ranks; two nodes."""

    def __init__(self, stack, gpm: Path, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        for number in (1, 2):
            rows = [{"prompt": f"w{number} w{i} w{i + 1} "} for i in range(17)]
            stack.write_jsonl(folder / f"prompts{number}.jsonl", rows)
        flags = stack.ppo_command(
            folder / "unused",
            *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(gpm)),
            *("--actor.policy_loss_type", "gpo"),
            *("--data.prompt_dataset", f"{folder}/prompts{{pass}}.jsonl", "--gpo.beta", "0.5", "--gpo.pull", "0.5"),
            *("--train.full_determinism_enable", "--ds.zero_stage", "3", "--actor.num_gpus_per_node", "2"),
            *("--rollout.n_samples_per_prompt", "5", "--rollout.batch_size", "8", "--rollout.micro_batch_size", "10"),
            *("--train.batch_size", "20", "--train.micro_batch_size", "2", "--train.max_epochs", "1"),
            *("--ckpt.save_steps", "1", "--ckpt.max_num", "1"),
        )[3:]
        for flag in ("--ckpt.output_dir", "--ckpt.path"):
            place = flags.index(flag)
            del flags[place : place + 2]
        self.flags = flags

    def start(self, name: str) -> Run:
        """The same command at every start of the same name."""
        driver = [sys.executable, "-m", "openrlhf_gpm.cli.main", "self-play", "--passes", "2"]
        command = [*driver, "--output", str(self.folder / name), "--", *self.flags]
        command += ["--gpm.log_groups", f"{self.folder}/{name}_groups{{pass}}"]
        return Run(subprocess.Popen(command, env=self.cluster.env, start_new_session=True, **OUTPUT))

    def actors(self, title: str) -> list[psutil.Process]:
        """Living processes of the actors of this class."""
        return self.cluster.actors(title)

    def checkpoints(self, name: str, number: int = 1) -> Path:
        return self.folder / name / f"pass{number}" / "deepspeed" / "_actor"

    def latest(self) -> str | None:
        file = self.checkpoints("cut") / "latest"
        return file.read_text() if file.exists() else None

    def hold(self, step: int, rank: int) -> "Held":
        folder = self.checkpoints("cut") / f"global_step{step}"
        folder.mkdir(parents=True, exist_ok=True)
        return Held(folder / SHARD.format(rank))


class Held:
    """A named pipe where a rank will write its optimizer states: the rank waits in the middle of the save."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self.pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def writes(self) -> bool:
        """Whether the rank has begun to write; what it writes is not read, so it cannot end."""
        return bool(select.select([self.pipe], [], [], 0.1)[0])

    def release(self) -> None:
        os.close(self.pipe)
        self.path.unlink()


@pytest.fixture(scope="module")
def passes(stack, gpm, cpu_env, tmp_path_factory):
    with running(Cluster(cpu_env)) as cluster:
        cluster.head("--num-gpus=2", "--num-cpus=3")
        cluster.join("--num-gpus=2", "--num-cpus=2")
        yield Passes(stack, gpm, cluster, tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def whole(passes) -> Path:
    """The folder of a self-play that nobody disturbs."""
    run = passes.start("whole")
    run.kill([])
    (passes.folder / "whole.log").write_text(run.text)
    assert run.process.returncode == 0, run.text[-6000:]
    return passes.folder / "whole"


@pytest.fixture(scope="module")
def deaths(passes) -> dict[str, Run]:
    """Six starts of one self-play, each killed, by victim and moment; the seventh runs to its end."""
    runs = {}

    def start(name: str) -> Run:
        runs[name] = passes.start("cut")
        runs[name].wait_for("Sample: ")  # the step's responses are scored, and training begins
        return runs[name]

    run = start("engine before the first save")
    run.kill(passes.actors(ENGINE))
    assert not passes.checkpoints("cut").exists()

    held = passes.hold(1, rank=0)
    run = start("rank inside the first save")
    run.until(held.writes)
    run.kill(passes.actors(RANK)[:1])
    held.release()
    assert passes.latest() is None

    run = start("reward actor between two saves")
    run.until(lambda: passes.latest() == "global_step1")
    run.kill(passes.actors(REWARD))

    saved = passes.latest()
    held = passes.hold(int(saved.removeprefix("global_step")) + 1, rank=1)
    run = start("node inside a later save")
    other = held.path.with_name(SHARD.format(0))
    run.until(lambda: held.writes() and other.exists() and zipfile.is_zipfile(other))
    run.kill(passes.cluster.processes(passes.cluster.nodes.pop()))
    held.release()
    assert passes.latest() == saved
    passes.cluster.join("--num-gpus=2", "--num-cpus=2")

    run = start("ranks inside the final save")
    ranks = passes.actors(RANK)
    run.until((passes.folder / "cut" / "pass1" / ".new").exists)
    run.kill(ranks)
    assert not (passes.folder / "cut" / "pass1" / "config.json").exists()

    run = runs["driver between two passes"] = passes.start("cut")
    run.wait_for("pass 2: ")
    run.kill([psutil.Process(run.process.pid)])

    run = runs["nobody"] = passes.start("cut")
    run.kill([])
    return runs


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("number", [1, 2])
def test_the_end_is_that_of_the_undisturbed_run_bit_for_bit(whole, deaths, passes, number):
    expected, found = weights(whole / f"pass{number}"), weights(passes.folder / "cut" / f"pass{number}")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize(
    ("death", "who"),
    [
        ("engine before the first save", r"vLLM engine 0 died.* --ckpt\.load_enable goes on"),
        ("rank inside the first save", r"policy rank \d died.* --ckpt\.load_enable goes on"),
        ("reward actor between two saves", r"reward rank 0 died.* --ckpt\.load_enable goes on"),
        ("node inside a later save", r"rank \d died.* --ckpt\.load_enable goes on"),
        ("ranks inside the final save", r"policy rank \d died.* --ckpt\.load_enable goes on"),
    ],
)
def test_a_death_ends_the_run_soon_and_says_who_and_how_to_go_on(deaths, death, who):
    run = deaths[death]
    assert run.process.returncode == 1
    assert run.seconds < SECONDS
    assert re.search(who, run.text), run.text[-3000:]
    assert "pass 1 ended with exit status 1: its output above says why. The same command " in run.text


def test_the_last_start_skips_the_finished_pass_and_trains_the_second(deaths, passes):
    assert deaths["driver between two passes"].process.returncode == -signal.SIGKILL
    last = deaths["nobody"]
    assert last.process.returncode == 0
    assert f"pass 1 is done: {passes.folder}/cut/pass1" in last.text
    assert f"pass 2: {passes.folder}/cut/pass1 -> {passes.folder}/cut/pass2" in last.text
    assert not list((passes.folder / "cut").glob("*/deepspeed"))


@pytest.mark.parametrize("number", [1, 2])
def test_every_prompt_of_a_killed_pass_is_logged_once(deaths, passes, stack, number):
    steps = sorted((passes.folder / f"cut_groups{number}").glob("step_*"))
    logged = [row["prompt"] for file in steps for row in stack.read_jsonl(file)]
    assert sorted(logged) == sorted(
        row["prompt"] for row in stack.read_jsonl(passes.folder / f"prompts{number}.jsonl")
    )


def test_each_pass_moves_the_policy(whole, stack):
    start, first, second = (weights(Path(path)) for path in (stack.world["policy"], whole / "pass1", whole / "pass2"))
    for before, after in ((start, first), (first, second)):
        assert any(not torch.equal(before[name], after[name]) for name in after)
