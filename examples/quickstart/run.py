"""The quickstart: learn preferences that no reward can express, then align a policy against them. On CPU, in minutes.

    python examples/quickstart/run.py [--output DIR] [--fresh]

A small world with known truth (world.py), two reward models trained on comparisons from it (openrlhf.cli.train_rm),
the same policy aligned against each by GPO (openrlhf.cli.train_ppo_ray), and exact measurements. A stage whose outputs
are there and whose inputs are unchanged is not run again.
"""

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from cluster import RayCluster, cpu_environment, single_process
from commands import KINDS, RUNS, Settings, alignment_command, reward_model_command
from stages import MemoryMonitor, ProgressLine, Stage, StageError, Stamps, clock, run_command

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = {"bt": "Bradley-Terry", "gpm": "GPM", "gpm_magnet": "GPM, with a magnet"}


def plan(out: Path, settings: Settings) -> list[Stage]:
    """The stages in order."""

    def script(name: str, *arguments: Path) -> list[str]:
        return [sys.executable, "-W", "ignore", str(HERE / name), *map(str, arguments)]

    def files(*names: str) -> tuple[Path, ...]:
        return tuple(HERE / name for name in names)

    package = (ROOT / "openrlhf_gpm", ROOT / "patches")
    world = Stage(
        name="world",
        title="world: data, starting policy",
        command=script("prepare.py", out / "world"),
        outputs=tuple(
            out / "world" / name for name in ("pairs.jsonl", "eval.jsonl", "prompts.jsonl", "base", "start")
        ),
        sources=files("prepare.py", "world.py", "models.py", "commands.py"),
        clears=(out / "world",),
    )
    rewards = {
        kind: Stage(
            name=kind,
            title=f"train_rm: {NAMES[kind]}",
            command=reward_model_command(kind, out / "world", out / kind, settings),
            outputs=(out / kind / "model.safetensors",),
            sources=package,
            after=(world,),
            progress=r"Train epoch:\s+\d+%\|[^|]*\| (\d+)/",
            unit="epoch",
            total=settings.reward_epochs(kind),
            clears=(out / kind, out / "tensorboard" / kind),
        )
        for kind in KINDS
    }
    runs = [
        Stage(
            name=f"gpo_{name}",
            title=f"train_ppo_ray: {NAMES[name]}",
            command=alignment_command(name, out / "world", out / kind, out / f"gpo_{name}", settings),
            outputs=(out / f"gpo_{name}" / f"global_step{settings.steps}_hf", out / f"gpo_{name}" / "last"),
            sources=package,
            after=(rewards[kind],),
            progress=r"Global step (\d+):",
            unit="step",
            total=settings.steps,
            ray=True,
            clears=(out / f"gpo_{name}", out / "tensorboard" / f"gpo_{name}"),
        )
        for name, kind in RUNS.items()
    ]
    measure = Stage(
        name="measure",
        title="measure",
        command=script("measure.py", out),
        outputs=(out / "measurements.json",),
        sources=(*package, *files("measure.py")),
        after=tuple(runs),
    )
    report = Stage(
        name="report",
        title="report",
        command=script("report.py", out),
        outputs=tuple(out / name for name in ("metrics.json", "report.md", "table.txt")),
        sources=files("report.py", "plots.py", "polygons.py", "metrics.py", "simulation.py"),
        after=(measure,),
    )
    return [world, *rewards.values(), *runs, measure, report]


def run(out: Path, settings: Settings) -> None:
    """Run what has to be run. Raises StageError or RuntimeError."""
    out.mkdir(parents=True, exist_ok=True)
    stages, stamps, env = plan(out, settings), Stamps(out / "stamps"), cpu_environment()
    cluster = RayCluster(env, out / "logs" / "ray.log")
    memory = MemoryMonitor()
    memory.start()
    try:
        for number, stage in enumerate(stages, start=1):
            label = f"[{number}/{len(stages)}] {stage.title:<42}"
            if not stage.ray:
                cluster.stop()
            if stamps.read(stage):
                print(f"{label}reused", flush=True)
                continue
            stamps.remove(stage)
            for path in stage.clears:
                shutil.rmtree(path, ignore_errors=True)
            line, start, digest = ProgressLine(label), time.monotonic(), stage.digest()
            memory.peak = 0.0
            stage_env = cluster.environment() if stage.ray else single_process(env)
            run_command(stage, stage_env, out / "logs" / f"{stage.name}.log", line)
            seconds = time.monotonic() - start
            stamps.write(stage, digest, seconds, memory.peak)
            line.end(f"{'done':<14}{clock(seconds)}   peak memory {memory.peak:.1f} GB")
    finally:
        cluster.stop()


def main() -> int:
    """Exit status 0 when the report is there, 1 when a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "quickstart", help="default: %(default)s")
    parser.add_argument("--fresh", action="store_true", help="run every stage again")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _exit)  # so that the cluster is stopped
    out, start = args.output.resolve(), time.monotonic()
    if args.fresh:
        shutil.rmtree(out / "stamps", ignore_errors=True)
    try:
        run(out, Settings())
    except (StageError, RuntimeError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the next run goes on from the stages that are done", file=sys.stderr)
        return 130
    print(f"\n{(out / 'table.txt').read_text(encoding='utf-8')}")
    print(f"report   {out / 'report.md'}")
    print(f"metrics  {out / 'metrics.json'}")
    print("plots    " + "\n         ".join(str(path) for path in sorted(out.glob("*.png"))))
    print(f"logs     {out / 'logs'}")
    print(f"\n{clock(time.monotonic() - start)} minutes")
    return 0


def _exit(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
