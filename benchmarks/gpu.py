"""What only a machine with a GPU can show, in under 8 minutes (`make gpu`): one stage after the other, each a command.

    tests       the tests that need CUDA
    train_rm    the recipe train_gpm_cyclic.sh in bf16, on a tiny model
    forests     benchmarks/forest_gpu.py: shared prompts at 1B and 8B
    self_play   the recipe gpo_llama3_8b_8gpu.sh on one GPU, two passes of a tiny policy

outputs/gpu.json is written after every stage, so a run that is cut off still reports. A stage whose software is not
installed is skipped and says what is missing. On a CPU the same stages run, to test them; only `tests` is skipped.

usage: python benchmarks/gpu.py [--seconds 480] [stage ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "examples" / "recipes"
TAIL = 20
"""Lines of a stage's output that the report keeps."""

GPU_TESTS = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/models", "tests/samples"]
FORESTS = [sys.executable, "benchmarks/forest_gpu.py"]
TRAINING = ("openrlhf", "deepspeed", "datasets")
ANSWERS = "until ray status >/dev/null 2>&1; do sleep 1; done"
# Sizes only: the recipes are run as they are shipped.
REWARD_SIZES = ["--train.max_epochs", "20", "--train.batch_size", "56", "--train.micro_batch_size", "56"]
REWARD_SIZES += ["--data.max_len", "32", "--adam.lr", "1e-3"]
POLICY_SIZES = ["--actor.num_gpus_per_node", "1", "--reward.num_gpus_per_node", "1", "--vllm.num_engines", "1"]
POLICY_SIZES += ["--rollout.batch_size", "4", "--train.batch_size", "20", "--rollout.max_new_tokens", "8"]
POLICY_SIZES += ["--data.max_len", "32"]


@dataclass(frozen=True)
class Stage:
    """A command and what it needs."""

    name: str
    command: list[str]
    modules: tuple[str, ...] = ()
    cuda: bool = False
    env: dict[str, str] = field(default_factory=dict)
    after: str = ""
    """A stage that must have passed."""


@dataclass
class Result:
    """How a stage ended: "passed", "failed", "out of time" or "skipped"."""

    stage: str
    state: str
    why: str = ""
    seconds: float = 0.0
    tail: list[str] = field(default_factory=list)


def stages(world: Path, cuda: bool) -> list[Stage]:
    """All of them. world: a folder for tiny models and what is trained."""
    attention = [] if not cuda or find_spec("flash_attn") else ["--ds.attn_implementation", "sdpa"]
    tiny = [sys.executable, "examples/cpu/tiny.py", str(world)]
    reward = ["bash", str(RECIPES / "train_gpm_cyclic.sh"), *REWARD_SIZES, *attention]
    play = ["bash", str(RECIPES / "gpo_llama3_8b_8gpu.sh"), *POLICY_SIZES, *attention]
    model, gpm = str(world / "model"), str(world / "gpm")
    port = 20000 + os.getpid() % 20000
    ray = f"ray start --head --block --port={port} --temp-dir={world}/ray --num-gpus=1 --num-cpus=4"
    played = {"RAY_ADDRESS": f"127.0.0.1:{port}", "REWARD": gpm, "OUT": str(world / "gpo"), "PASSES": "2"}
    return [
        Stage("tests", GPU_TESTS, ("pytest",), cuda=True),
        Stage(
            "train_rm",
            _in_order(tiny, reward),
            TRAINING,
            env={"MODEL": model, "DATA": str(world / "pairs.jsonl"), "OUT": gpm},
        ),
        Stage("forests", FORESTS),
        Stage(
            "self_play",
            ["bash", "-c", f'{ray} & trap "kill $!; wait" EXIT; {ANSWERS}; "$@"', "-", *play],
            (*TRAINING, "ray", "vllm"),
            env=played | {"POLICY": model, "DATA": str(world / "prompts.jsonl")},
            after="train_rm",
        ),
    ]


def _in_order(first: list[str], second: list[str]) -> list[str]:
    return ["bash", "-c", f'{" ".join(first)} && exec "$@"', "-", *second]


def missing(stage: Stage, cuda: bool, passed: Iterable[str]) -> str:
    """Why a stage cannot run here, or ""."""
    absent = [name for name in stage.modules if find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if "openrlhf" in stage.modules and "gpm" not in entry_points(group="openrlhf.plugins").names:
        return "openrlhf-gpm is not installed: a PYTHONPATH registers no plugin"
    if stage.cuda and not cuda:
        return "no CUDA device"
    if stage.after and stage.after not in passed:
        return f"needs what {stage.after} trains"
    return ""


def run(stage: Stage, seconds: float) -> Result:
    """Run the command for at most so many seconds; its output is printed too."""
    start = time.monotonic()
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    command = ["timeout", "--kill-after=10", str(max(1, int(seconds))), *stage.command]
    with subprocess.Popen(command, cwd=ROOT, env=environment() | stage.env, **options) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    status = process.returncode
    state = {0: "passed", 124: "out of time", 137: "out of time"}.get(status, "failed")
    why = "" if status == 0 else f"exit status {status}"
    return Result(stage.name, state, why, round(time.monotonic() - start, 1), lines[-TAIL:])


def environment() -> dict[str, str]:
    """This process's, with the checkout importable, and without the letter in 9.0a, on which DeepSpeed dies."""
    env = dict(os.environ)
    env["PYTHONPATH"] = f"{ROOT}:{env['PYTHONPATH']}" if env.get("PYTHONPATH") else str(ROOT)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    if archs := env.get("TORCH_CUDA_ARCH_LIST"):
        env["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(?<=\d)[a-z]", "", archs)
    return env


def software() -> dict[str, str]:
    """Versions that decide about the numbers."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "deepspeed", "ray", "vllm", "openrlhf", "flash-attn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def report(chosen: list[Stage], cuda: bool, card: str, file: Path, seconds: float) -> list[Result]:
    """Run the stages, write `file` after each, and print one line per stage at the end."""
    end, results = time.monotonic() + seconds, list[Result]()
    for stage in chosen:
        passed = [each.stage for each in results if each.state == "passed"]
        if why := missing(stage, cuda, passed):
            results.append(Result(stage.name, "skipped", why))
        elif time.monotonic() > end:
            results.append(Result(stage.name, "skipped", f"the {seconds:.0f} s are over"))
        else:
            print(f"== {stage.name}", flush=True)
            results.append(run(stage, end - time.monotonic()))
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"card": card, "software": software(), "stages": [asdict(each) for each in results]}
        file.write_text(json.dumps(content, indent=2) + "\n")
    for each in results:
        print(f"{each.stage:10} {each.state:12} {each.seconds:6.1f} s  {each.why}")
    print(f"written to {file}")
    return results


def main() -> int:
    """Exit status 0 if no stage failed; skipped ones do not count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="only these")
    parser.add_argument("--seconds", type=float, default=480, help="for all stages together")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu.json")
    args = parser.parse_args()
    import torch

    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="gpm") as world:
        found = stages(Path(world), cuda)
        names = [stage.name for stage in found]
        if unknown := set(args.stages) - set(names):
            parser.error(f"no stage {', '.join(sorted(unknown))}: there are {', '.join(names)}")
        chosen = [stage for stage in found if stage.name in (args.stages or names)]
        card = torch.cuda.get_device_name() if cuda else "CPU"
        results = report(chosen, cuda, card, args.output, args.seconds)
    return int(any(each.state in ("failed", "out of time") for each in results))


if __name__ == "__main__":
    sys.exit(main())
