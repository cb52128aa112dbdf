"""Every command line of every recipe goes through OpenRLHF's own parsers and checks, our plugin's included.

A recipe is run with stubs for the programs that it starts; each stub writes down its arguments and does nothing.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from openrlhf_gpm.checkpoints.checkpoint import open_pretrained
from openrlhf_gpm.cli.main import build_parser
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.trainer.checkpoint_checks import reward_attention
from openrlhf_gpm.trainer.reward.flags import share_prompt_obstacle
from openrlhf_gpm.trainer.self_play import plan

EXAMPLES = Path(__file__).parents[2] / "examples"
STUB = """#!{python} -I
import json, os, sys
with open({record!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[1:2] == ["show"]:
    print(*(f"node-{{i}}" for i in range(1, 5)), sep="\\n")
if sys.argv[1:2] == ["-"]:  # the look at the nodes of the SLURM script
    print(os.environ.get("ABSENT", ""))
"""
PROGRAMS = ("deepspeed", "python", "python3", "openrlhf-gpm", "ray", "srun", "scontrol")
SLURM = {
    "SLURM_JOB_NODELIST": "node-[1-4]",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_JOB_ID": "7",
    "SLURM_CPUS_PER_TASK": "64",
    "SLURM_GPUS_PER_NODE": "h100:8",
}
RUN_WHOLE = {"smollm2/self_play.sh"}
"""Its steps read what the ones before wrote, which stubs do not write: tests/integration/test_smollm2_self_play.py."""
RECIPES = {  # name -> (command, environment)
    "train_gpm gemma": (["recipes/train_gpm_8gpu.sh", "gemma-2b"], {}),
    "train_gpm llama": (["recipes/train_gpm_8gpu.sh", "llama-8b"], {}),
    "train_gpm reward": (
        [
            *("recipes/train_gpm_8gpu.sh", "gemma-2b", "--gpm.head", "reward", "--gpm.dim", "2"),
            *("--gpm.gate", "none", "--gpm.no_normalize", "--gpm.tau", "1"),
        ],
        {},
    ),
    "train_gpm cyclic": (["recipes/train_gpm_cyclic.sh"], {"DATA": "cyclic.jsonl"}),
    "train_bt cyclic": (["recipes/train_gpm_cyclic.sh", "--reward_model_type", "bt"], {"DATA": "cyclic.jsonl"}),
    "gpo": (["recipes/gpo_llama3_8b_8gpu.sh"], {}),
    "sppo": (["recipes/sppo_llama3_8b_8gpu.sh"], {}),
    "sppo hard": (["recipes/sppo_llama3_8b_8gpu.sh", "--gpo.hard", "--gpo.responses", "best_worst"], {}),
    "gpo ray job": (["cluster/ray_job.sh"], {"NODES": "4"}),
    "gpo slurm": (["cluster/slurm.sbatch"], SLURM),
    "smollm2 gpm": (["smollm2/train.sh", "gpm", "train.jsonl", "--gpm.no_normalize", "--gpm.tau", "1"], {}),
    "smollm2 bt": (["smollm2/train.sh", "bt", "train.jsonl", "--gpm.head", "reward"], {}),
    "cpu train_gpm": (["cpu/train_gpm.sh"], {}),
    "cpu gpo": (["cpu/gpo.sh"], {"RAY_ADDRESS": "127.0.0.1:6379"}),
    "cpu sppo": (["cpu/gpo.sh"], {"RAY_ADDRESS": "127.0.0.1:6379", "LOSS": "sppo"}),
}


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    """What the checks read of a GPM: its config.json."""
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "gpm": GPMConfig().to_dict()}
    for folder in (tmp_path / "reward", tmp_path / "world" / "gpm", tmp_path / "world" / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    return tmp_path / "reward"


def recorded(script: list[str], environment: dict[str, str], reward: Path) -> list[list[str]]:
    """Argument lists, program first, that the recipe started, in order."""
    done = started(script, environment, reward.parent)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (reward.parent / "record").read_text().splitlines()]


def started(script: list[str], environment: dict[str, str], root: Path) -> subprocess.CompletedProcess[str]:
    """The script, run to its end with stubs that write to `root`/record."""
    (root / "bin").mkdir(exist_ok=True)
    (root / "record").unlink(missing_ok=True)
    for name in PROGRAMS:
        stub = root / "bin" / name
        stub.write_text(STUB.format(python=sys.executable, record=str(root / "record")))
        stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}", "REWARD": str(root / "reward")}
    env |= {"OUT": str(root / "out"), "WORLD": str(root / "world"), **environment}
    return subprocess.run(["bash", *script], env=env, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=60)


def trainings(commands: list[list[str]]) -> list[tuple[str, list[str]]]:
    """(module below openrlhf.cli, its arguments) of each training, every pass of self-play included."""
    found = []
    for command in commands:
        for place, word in enumerate(command):
            if word.startswith("openrlhf.cli."):
                found.append((word.removeprefix("openrlhf.cli."), command[place + 1 :]))
        if "self-play" in command:
            args = build_parser(["self-play"]).parse_args(command[command.index("self-play") :])
            for each in plan(args.flags, args.passes, args.output):
                flags = list(each.flags)
                each.folder.mkdir(parents=True, exist_ok=True)  # as if the pass had been trained, for the one after it
                found.append(("train_ppo_ray", flags))
    return found


def test_a_flag_of_the_user_wins_over_the_recipes(reward: Path):
    script = [str(EXAMPLES / RECIPES["gpo"][0][0]), "--gpo.beta", "2"]
    runs = [parse(*run) for run in trainings(recorded(script, {"DATA": "mine{pass}", "PASSES": "2"}, reward))]
    assert [run.gpo.beta for run in runs] == [2, 2]
    assert [run.data.prompt_dataset for run in runs] == ["mine1", "mine2"]


def parse(module: str, arguments: list[str]) -> Any:
    return importlib.import_module(f"openrlhf.cli.{module}").parse_args(arguments)


def parsed(name: str, reward: Path) -> list[SimpleNamespace]:
    script, environment = RECIPES[name]
    commands = recorded([str(EXAMPLES / script[0]), *script[1:]], environment, reward)
    return [parse(module, arguments) for module, arguments in trainings(commands)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_flags_of_a_recipe_are_accepted(name: str, reward: Path):
    runs = parsed(name, reward)
    assert len(runs) == (3 if name.startswith(("gpo", "sppo")) else 1)


def test_every_shell_recipe_is_tested():
    recipes = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.s*") if path.suffix in (".sh", ".sbatch")}
    assert recipes - {"cpu/env.sh"} - RUN_WHOLE == {script[0] for script, _ in RECIPES.values()}


def test_a_flag_that_does_not_exist_is_found():
    with pytest.raises(SystemExit):
        parse("train_rm", ["--gpm.dimension", "8"])


def test_training_follows_tables_12_and_13_of_the_paper(reward: Path):
    (cyclic,) = parsed("train_gpm cyclic", reward)
    assert (cyclic.train.batch_size, cyclic.adam.lr, cyclic.train.max_epochs) == (1, 1e-6, 50)
    assert (cyclic.gpm.tau, cyclic.data.max_len, cyclic.lr_scheduler, cyclic.lr_warmup_ratio) == (
        0.1,
        2048,
        "cosine",
        0.03,
    )


@pytest.mark.parametrize(("size", "lr", "dim"), [("gemma", 1e-5, 6), ("llama", 2e-6, 8)])
def test_a_global_batch_of_32_needs_no_accumulation_on_8_gpus(size: str, lr: float, dim: int, reward: Path):
    (run,) = parsed(f"train_gpm {size}", reward)
    assert (run.train.batch_size, run.adam.lr, run.train.max_epochs, run.gpm.dim) == (32, lr, 2, dim)
    assert run.train.batch_size == 8 * run.train.micro_batch_size


def test_gpo_follows_section_6_3_and_each_pass_starts_from_the_one_before(reward: Path):
    passes = parsed("gpo", reward)
    for number, run in enumerate(passes, 1):
        assert run.data.prompt_dataset.endswith(f"iter{number}")
        assert (run.rollout.n_samples_per_prompt, run.rollout.temperature, run.rollout.top_p) == (5, 0.7, 0.9)
        assert (run.actor.adam.lr, run.gpo.beta, run.actor.policy_loss_type) == (5e-7, 0.001, "gpo")
    assert [run.actor.model_name_or_path for run in passes[1:]] == [run.ckpt.output_dir for run in passes[:-1]]


def test_sppo_is_gpo_with_another_loss(reward: Path):
    assert {run.actor.policy_loss_type for run in parsed("sppo", reward)} == {"sppo"}


@pytest.mark.parametrize(("name", "gpus"), [("gpo", 8), ("gpo ray job", 32), ("gpo slurm", 32), ("cpu gpo", 3)])
def test_a_recipe_asks_for_the_gpus_that_it_names(name: str, gpus: int, reward: Path):
    from openrlhf_gpm.trainer.policy.placement import devices_needed

    assert {devices_needed(run) for run in parsed(name, reward)} == {gpus}


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["gpo", "sppo", "gpo ray job", "gpo slurm", "cpu gpo"])
def test_the_reward_actor_of_a_recipe_shares_prompts(name: str, reward: Path):
    for run in parsed(name, reward):
        attention, _ = reward_attention(run)
        assert attention == ("sdpa" if name.startswith("cpu") else "flash_attention_2")
        checkpoint = open_pretrained(run.reward.model_name_or_path, "--reward.model_name_or_path")
        assert checkpoint.forest_obstacle(attention, checkpoint.gpm.max_len) is None
        assert run.rollout.micro_batch_size % run.rollout.n_samples_per_prompt == 0  # no group is cut


@pytest.mark.usefixtures("as_on_a_gpu")
def test_training_a_gpm_on_gpus_shares_prompts(reward: Path):
    for name in ("train_gpm gemma", "train_gpm cyclic"):
        (run,) = parsed(name, reward)
        assert run.ds.attn_implementation == "flash_attention_2"
        start = open_pretrained(str(reward), "--model.model_name_or_path")  # the recipe's own is not here
        assert share_prompt_obstacle(start, run, run.data.max_len) is None


def test_training_on_one_node_takes_no_hostfile_of_the_machine(reward: Path):
    """deepspeed itself reads the flag, and would take /job/hostfile without it."""
    from deepspeed.launcher import runner

    (command,) = recorded([str(EXAMPLES / "recipes/train_gpm_8gpu.sh"), "gemma-2b"], {}, reward)
    assert command[0] == "deepspeed"
    hostfile = runner.parse_args(command[1:]).hostfile
    assert hostfile != runner.DLTS_HOSTFILE
    assert runner.fetch_hostfile(hostfile) is None


def test_all_passes_are_one_ray_job_behind_its_own_options(reward: Path):
    script, environment = RECIPES["gpo ray job"]
    (submitted,) = recorded([str(EXAMPLES / script[0])], environment, reward)
    assert submitted[:3] == ["ray", "job", "submit"]
    environment_file = next(word for word in submitted if word.startswith("--runtime-env=")).partition("=")[2]
    assert set(yaml.safe_load((EXAMPLES / "cluster" / environment_file).read_text())) == {"env_vars"}
    assert submitted[submitted.index("--") + 1 :][:2] == ["openrlhf-gpm", "self-play"]


@pytest.mark.parametrize("name", ["gpo ray job", "gpo", "train_gpm gemma", "cpu gpo", "smollm2 gpm"])
def test_a_checkout_whose_path_has_a_blank_starts_the_same_commands(name: str, reward: Path):
    (script, *words), environment = RECIPES[name]
    here = recorded([str(EXAMPLES / script), *words], environment, reward)
    copy = shutil.copytree(EXAMPLES, reward.parent / "a checkout" / "examples")
    there = recorded([str(copy / script), *words], environment, reward)
    assert [[word.replace(str(copy), str(EXAMPLES)) for word in command] for command in there] == here


def test_a_ray_job_needs_an_absolute_output(reward: Path):
    done = started([str(EXAMPLES / "cluster/ray_job.sh")], {"OUT": "ckpt/gpo"}, reward.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert "OUT must be an absolute path" in done.stderr


def test_slurm_gives_every_ray_the_cpus_and_memory_of_its_node(reward: Path):
    commands = recorded([str(EXAMPLES / "cluster/slurm.sbatch")], SLURM, reward)
    starts = [command for command in commands if command[0] == "srun"]
    assert sorted(word for command in starts for word in command if word.startswith("--nodelist")) == [
        f"--nodelist=node-{i}" for i in range(1, 5)
    ]
    assert sorted("--head" in command for command in starts) == [False, False, False, True]
    for command in starts:
        assert {"--cpus-per-task=64", "--mem=0", "--num-cpus=64", "--num-gpus=8"} <= set(command)


def test_slurm_ends_in_seconds_when_a_ray_start_ends(reward: Path):
    """The stub for srun ends at once, as one does whose port is taken."""
    done = started([str(EXAMPLES / "cluster/slurm.sbatch")], SLURM | {"ABSENT": "node-1 node-3"}, reward.parent)
    assert done.returncode == 1
    assert "error: ray start ended on node-" in done.stderr
    assert "self-play" not in (reward.parent / "record").read_text()


def test_slurm_names_the_nodes_that_have_not_joined_in_time(reward: Path):
    root = reward.parent
    started([str(EXAMPLES / "recipes/sppo_llama3_8b_8gpu.sh")], {}, root)  # makes the stubs
    (root / "bin" / "srun").write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    late = SLURM | {"ABSENT": "node-3", "START_SECONDS": "0", "PATH": f"{root / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(EXAMPLES / "cluster/slurm.sbatch")]
    done = subprocess.run(command, env=os.environ | late, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "these nodes have not joined in time: node-3" in done.stderr


def test_the_kuberay_job_runs_the_recipe_on_as_many_gpus_as_it_orders(reward: Path):
    job = yaml.safe_load((EXAMPLES / "cluster/kuberay.yaml").read_text())["spec"]
    entrypoint = job["entrypoint"].replace("/opt/openrlhf-gpm", str(EXAMPLES.parent))
    entrypoint = entrypoint.replace("/shared/ckpt/gpm-gemma-2b", str(reward)).replace("/shared", str(reward.parent))
    runs = [parse(*run) for run in trainings(recorded(["-c", entrypoint], {}, reward))]
    workers = job["rayClusterSpec"]["workerGroupSpecs"][0]
    assert {run.actor.num_nodes for run in runs} == {workers["replicas"]}
    assert workers["rayStartParams"]["num-gpus"] == "8"
