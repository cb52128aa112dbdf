"""Stages: reused when nothing changed, run again when something did, and told about when they fail."""

import sys
from pathlib import Path

import cluster
import commands
import polygons
import pytest
import run
import stages
import torch
from commands import Settings
from stages import ProgressLine, Stage, StageError, Stamps, run_command
from world import GAMES

from openrlhf_gpm.core import embed_scores, group_scores


@pytest.fixture
def stage(tmp_path) -> Stage:
    """A stage that copies its source to its output."""
    source, output = tmp_path / "source.txt", tmp_path / "output.txt"
    source.write_text("one")
    command = [sys.executable, "-c", f"import shutil; shutil.copy({str(source)!r}, {str(output)!r})"]
    return Stage(name="copy", title="copy", command=command, outputs=(output,), sources=(source,))


def test_a_finished_stage_is_reused_until_its_source_its_command_or_its_output_changes(stage, tmp_path):
    stamps = Stamps(tmp_path / "stamps")
    assert stamps.read(stage) is None
    digest = stage.digest()
    run_command(stage, {}, tmp_path / "log", ProgressLine(""))
    stamps.write(stage, digest, seconds=2.0, peak_gb=0.5)
    assert stamps.read(stage)["seconds"] == 2.0

    other = Stage(name="copy", title="copy", command=[*stage.command, "x"], outputs=stage.outputs)
    assert stamps.read(other) is None
    stage.outputs[0].unlink()
    assert stamps.read(stage) is None
    stage.outputs[0].write_text("one")
    assert stamps.read(stage) is not None
    stage.sources[0].write_text("two")
    assert stamps.read(stage) is None


def test_a_stage_is_run_again_after_one_that_it_reads_was(stage, tmp_path):
    """Same inputs, but the results of training may differ in the last digits: the report must not be the old one."""
    stamps = Stamps(tmp_path / "stamps")
    later = Stage(name="later", title="later", command=[""], outputs=(), after=(stage,))
    for each in (stage, later):
        stamps.write(each, each.digest(), seconds=1.0, peak_gb=0.1)
    assert stamps.read(later) is not None
    stamps.write(stage, stage.digest(), seconds=1.0, peak_gb=0.1)
    assert stamps.read(later) is None


def test_a_change_reaches_the_stages_that_come_after(stage):
    later = Stage(name="later", title="later", command=[""], outputs=(), after=(stage,))
    before = later.digest()
    stage.sources[0].write_text("two")
    assert later.digest() != before


def test_a_failure_names_the_stage_and_shows_the_end_of_its_log(tmp_path):
    script = "import sys; print(*range(100), sep='\\n'); print('no such model'); sys.exit(3)"
    broken = Stage(name="train", title="train", command=[sys.executable, "-c", script], outputs=())
    with pytest.raises(StageError) as error:
        run_command(broken, {}, tmp_path / "train.log", ProgressLine(""))
    text = str(error.value)
    assert "train ended with exit status 3" in text
    assert text.endswith("  no such model")
    assert str(tmp_path / "train.log") in text
    assert len(text.splitlines()) == stages.TAIL + 2


def test_a_command_that_writes_nothing_is_a_failure(tmp_path):
    idle = Stage(name="idle", title="idle", command=[sys.executable, "-c", ""], outputs=(tmp_path / "model",))
    with pytest.raises(StageError, match="idle did not write"):
        run_command(idle, {}, tmp_path / "log", ProgressLine(""))


@pytest.mark.parametrize(
    ("pieces", "total", "shown"),
    [
        (["Global step 1: ok\n", "Global step 2: ok\n", "Global step 3: ok\n"], 3, "step 3/3"),
        (["Global st", "ep 12: ok"], 20, "step 12/20"),
    ],
    ids=["whole lines", "a pause in mid-line"],
)
def test_progress_is_read_from_the_log(tmp_path, capsys, monkeypatch, pieces, total, shown):
    monkeypatch.setattr(stages, "QUIET", 0)
    script = f"import time\nfor text in {pieces!r}: print(text, end='', flush=True); time.sleep(0.6)"
    slow = Stage(
        name="slow",
        title="slow",
        command=[sys.executable, "-c", script],
        outputs=(),
        progress=r"Global step (\d+):",
        unit="step",
        total=total,
    )
    run_command(slow, {}, tmp_path / "log", ProgressLine("slow "))
    assert shown in capsys.readouterr().out


def test_every_stage_comes_after_those_it_reads(tmp_path):
    plan = run.plan(tmp_path, Settings())
    assert [stage.name for stage in plan] == [
        *("world", "bt", "gpm", "gpo_gpm_magnet", "gpo_gpm", "gpo_bt", "measure", "report")
    ]
    for index, stage in enumerate(plan):
        assert all(before in plan[:index] for before in stage.after)
        assert all(path.exists() for path in stage.sources)


@pytest.mark.parametrize("run", commands.RUNS)
def test_the_real_parsers_take_the_flags(run):
    from openrlhf.cli import train_ppo_ray, train_rm

    world, out = Path("world"), Path("out")
    kind = commands.RUNS[run]
    train = commands.reward_model_command(kind, world, out, Settings())
    args = vars(train_rm.build_parser().parse_args(train[3:]))
    assert args["reward_model_type"] == kind
    align = commands.alignment_command(run, world, out, out, Settings())
    args = vars(train_ppo_ray.build_parser().parse_args(align[3:]))
    assert args["actor.policy_loss_type"] == "gpo"
    assert (args["gpo.pull"] > 0) == (run == "gpm_magnet")
    objective = Settings().objective(run)
    assert (args["gpo.beta"], args["gpo.pull"]) == (objective.beta, objective.pull)
    prompts = 3 * Settings().groups
    assert args["rollout.batch_size"] * args["rollout.n_samples_per_prompt"] == args["train.batch_size"]
    assert args["rollout.batch_size"] == prompts  # one episode is one iteration


def test_the_environment_is_that_of_the_cpu_recipes(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "1.2.3.4:6379")
    env = cluster.cpu_environment()
    assert env["DS_ACCELERATOR"] == "cpu"
    assert "RAY_ADDRESS" not in env  # somebody else's cluster
    assert env["PATH"].startswith(str(Path(sys.executable).parent))


def test_principal_planes_keep_every_score_of_a_game_with_two_planes():
    game = GAMES[0]
    embeddings = embed_scores(game.scores, compact=True)
    assert embeddings.shape == (4, 4)
    gate = torch.tensor([0.5, 1.5])
    cycle, rest = polygons.principal_planes(embeddings, gate, game.size)
    seen = torch.cat([cycle, rest], -1)
    torch.testing.assert_close(group_scores(seen), group_scores(embeddings, gate.double()), atol=1e-6, rtol=0)
    torch.testing.assert_close(cycle[0, 0], torch.tensor(0.0, dtype=torch.float64), atol=1e-9, rtol=0)  # on top
