"""The seam: a file is an objective, its fields are its flags, and every flag does something."""

import os
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrlhf_gpm import objectives
from openrlhf_gpm.core import Groups
from openrlhf_gpm.flags import KEY, flag_fields
from openrlhf_gpm.objectives import Objective
from openrlhf_gpm.objectives.frozen import POLICIES
from openrlhf_gpm.objectives.gpo import GPO
from openrlhf_gpm.objectives.sppo import SPPO
from openrlhf_gpm.objectives.upstream import Upstream

every_objective = pytest.mark.parametrize("name", objectives.classes())


def parse(loss: str, *words: str) -> SimpleNamespace:
    """The flags of all objectives, nested as OpenRLHF nests them."""
    parser = ArgumentParser()
    objectives.add_objective_flags(parser)
    args = SimpleNamespace(actor=SimpleNamespace(policy_loss_type=loss))
    for name, value in vars(parser.parse_args(words)).items():
        group, _, field = name.partition(".")
        vars(args).setdefault(group, SimpleNamespace()).__dict__[field] = value
    return args


def test_the_objectives_are_the_files_that_name_one():
    files = Path(objectives.__file__).parent.glob("*.py")
    assert list(objectives.classes()) == sorted(file.stem for file in files if "\nOBJECTIVE = " in file.read_text())
    assert [objectives.load(name) for name in ("gpo", "sppo", "ppo", "gspo")] == [GPO, SPPO, Upstream, Upstream]


NEW_OBJECTIVE = """
from dataclasses import dataclass
from typing import ClassVar
from openrlhf_gpm.flags import flag
from openrlhf_gpm.objectives.objective import Objective

@dataclass(frozen=True, kw_only=True)
class Flat(Objective):
    prefix: ClassVar[str] = "flat"
    height: float = flag(1.0, "how high")

OBJECTIVE = Flat
"""


def test_a_new_file_is_a_new_objective_with_its_flags(tmp_path):
    """Nothing else is edited: not a list of names, not the plugin."""
    shutil.copytree(Path(objectives.__file__).parents[1], tmp_path / "openrlhf_gpm")
    (tmp_path / "openrlhf_gpm" / "objectives" / "flat.py").write_text(NEW_OBJECTIVE)
    code = """if True:
        from argparse import ArgumentParser
        from types import SimpleNamespace as Space
        from openrlhf_gpm import objectives
        from openrlhf_gpm.plugin import GPMPlugin
        parser = ArgumentParser()
        objectives.add_objective_flags(parser)
        flags = vars(parser.parse_args(["--flat.height", "2"]))
        args = Space(actor=Space(policy_loss_type="flat"))
        for name, value in flags.items():
            group, field = name.split(".")
            setattr(vars(args).setdefault(group, Space()), field, value)
        print("flat" in GPMPlugin().choices("actor.policy_loss_type"), objectives.from_args(args))
    """
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout == "True Flat(height=2.0)\n", done.stderr


@every_objective
def test_without_flags_an_objective_has_its_own_defaults(name):
    assert objectives.from_args(parse(name)) == objectives.load(name)()


def test_flags_reach_the_objective_that_reads_them():
    assert objectives.from_args(parse("gpo", "--gpo.beta", "5", "--gpo.baseline", "log_z")) == GPO(
        beta=5.0, baseline="log_z"
    )
    words = ["--gpo.hard", "--gpo.responses", "best_worst", "--gpo.target_clip", "2"]
    assert objectives.from_args(parse("sppo", *words)) == SPPO(hard=True, responses="best_worst", target_clip=2.0)
    assert objectives.from_args(parse("ppo", "--gpm.reward", "win_rate")) == Upstream(by="win_rate")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["gpo", "--gpo.hard"], "--gpo.hard is read by sppo, not by gpo: remove it"),
        (["sppo", "--gpo.baseline", "log_z"], "--gpo.baseline is read by gpo, not by sppo: remove it"),
        (["sppo", "--gpo.beta", "0"], "--gpo.beta must be at least 1e-30 and finite, got 0.0"),
    ],
)
def test_a_flag_that_cannot_work_is_refused_by_its_name(words, error):
    with pytest.raises(ValueError, match="--gpo") as refused:
        objectives.from_args(parse(*words))
    assert str(refused.value) == error


def test_flags_that_a_run_does_not_read_are_named():
    args = parse("ppo", "--gpm.reward", "win_rate", "--gpo.beta", "5", "--gpo.hard")
    assert objectives.unread_flags(args, Upstream) == ["--gpo.beta", "--gpo.hard"]
    assert objectives.unread_flags(args, SPPO) == ["--gpm.reward"]
    assert objectives.unread_flags(args, GPO) == ["--gpm.reward", "--gpo.hard"]
    assert objectives.unread_flags(args, None) == ["--gpm.reward", "--gpo.beta", "--gpo.hard"]
    assert objectives.unread_flags(parse("gpo"), None) == []


def test_help_names_the_default_and_who_reads_a_flag_that_not_all_read(flags_of):
    parser = ArgumentParser()
    objectives.add_objective_flags(parser)
    actions = flags_of(parser)
    assert actions["--gpo.beta"].help.startswith("1 / beta is the size of a step")
    assert actions["--gpo.beta"].help.endswith("(default: 1.0)")
    assert actions["--gpo.baseline"].help.startswith("gpo: ")
    assert actions["--gpo.hard"].help.startswith("sppo: ")
    assert re.search(r"^objectives: .*\bgpo\b.*\bsppo\b.*:$", parser.format_help(), re.MULTILINE)
    assert "objectives: OpenRLHF's own losses:" in parser.format_help()


@every_objective
def test_a_flag_has_the_values_that_its_field_takes(name, flags_of):
    parser = ArgumentParser()
    objectives.add_objective_flags(parser)
    cls = objectives.load(name)
    for flag, item in flag_fields(cls).items():
        action = flags_of(parser)[f"--{cls.prefix}.{flag}"]
        assert action.default == item.default
        for choice in action.choices or []:
            cls(**{item.name: choice})
        if action.choices:
            with pytest.raises(ValueError, match=rf"--{cls.prefix}\.{flag} "):
                cls(**{item.name: "another"})


def test_two_objectives_with_one_flag_agree():
    """One help, one default and one list of choices, or the second class would change the flag of the first."""
    for one, other in combinations([Upstream, *objectives.classes().values()], 2):
        if one.prefix == other.prefix:
            mine, theirs = flag_fields(one), flag_fields(other)
            for flag in mine.keys() & theirs.keys():
                same = (mine[flag].name, mine[flag].default, mine[flag].metadata[KEY])
                assert same == (theirs[flag].name, theirs[flag].default, theirs[flag].metadata[KEY]), (one, other)


def numbers(objective: Objective) -> list[Any]:
    """All that a policy is trained on: what is selected, prepared, and the loss, for two random groups of four."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(2, 4, 4, generator=generator)
    drift = {name: torch.randn(2, 4, generator=generator) for name in POLICIES}
    groups = Groups(3 * (m - m.mT), drift=drift)
    chosen = objective.select(groups)
    unit = (-1,) if objective.together == 1 else (-1, objective.together)
    given = objective.prepare(groups)
    moved = torch.randn(chosen.numel(), generator=generator).view(unit)
    loss = objective.loss(moved, {key: values.gather(1, chosen).reshape(unit) for key, values in given.items()})
    return [chosen.tolist(), {key: values.tolist() for key, values in given.items()}, loss.tolist()]


def other_values(item: Any) -> list[Any]:
    """Values that a flag may have besides its default."""
    options = item.metadata[KEY]
    if "choices" in options:
        return [choice for choice in options["choices"] if choice != item.default]
    if item.default is False:
        return [True]
    return [(item.default or 0.2) / 2]


WITH = {"magnet": {"pull": 0.1}}
"""What another flag needs beside it to do something."""
NOT_TRAINED_ON = {"save_magnet"}
FLAGS = [(name, flag) for name, cls in objectives.classes().items() for flag in flag_fields(cls)]


@pytest.mark.parametrize(("name", "flag"), [pair for pair in FLAGS if pair[1] not in NOT_TRAINED_ON])
def test_every_flag_of_an_objective_moves_its_numbers(name, flag):
    """No dead flags: each other value changes what is selected, prepared or minimised."""
    plain = replace(objectives.load(name)(), **WITH.get(flag, {}))
    item = flag_fields(plain)[flag]
    for value in other_values(item):
        assert numbers(replace(plain, **{item.name: value})) != numbers(plain)
