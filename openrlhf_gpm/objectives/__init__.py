"""What a policy learns from groups of judged responses, one objective per file; torch only.

A file that ends in `OBJECTIVE = Class` is an objective: its name is the choice of --actor.policy_loss_type, the fields
of the class are its flags. Nothing else registers it.
"""

from argparse import ArgumentParser
from dataclasses import Field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_gpm.core import Groups as Groups
from openrlhf_gpm.flags import add_flags, flag_fields, given_flags, read_flags
from openrlhf_gpm.objectives import opponents
from openrlhf_gpm.objectives.objective import Objective as Objective
from openrlhf_gpm.objectives.upstream import Upstream

Flags = dict[str, Field[Any]]


@cache
def classes() -> dict[str, type[Objective]]:
    """Every objective with its own loss, by name."""
    files = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    modules = {name: import_module(f"{__name__}.{name}") for name in files}
    return {name: module.OBJECTIVE for name, module in modules.items() if hasattr(module, "OBJECTIVE")}


def load(name: str) -> type[Objective]:
    """The class of the objective with this name; `Upstream` for a loss of OpenRLHF's."""
    return classes().get(name, Upstream)


def from_args(args: SimpleNamespace) -> Objective:
    """The objective that parsed arguments of train_ppo_ray ask for. Raises ValueError that names the flag."""
    cls = load(args.actor.policy_loss_type)
    given = set(given_flags(args, cls.prefix, _flags()[cls.prefix]))
    for option in sorted(given - _options(cls)) if cls.own_loss else ():
        readers = " and ".join(name for name, other in classes().items() if option in _options(other))
        raise ValueError(f"{option} is read by {readers}, not by {args.actor.policy_loss_type}: remove it")
    return cls(**read_flags(args, cls.prefix, flag_fields(cls)))


def frozen_policies(args: SimpleNamespace) -> tuple[str, ...]:
    """The frozen policies that a run needs, for its objective or for its opponent."""
    return tuple(dict.fromkeys((*from_args(args).needs, *opponents.from_args(args).needs)))


def unread_flags(args: SimpleNamespace, cls: type[Objective] | None) -> list[str]:
    """The given flags of objectives that `cls` does not read; of all objectives where it is None."""
    given = {option for prefix, flags in _flags().items() for option in given_flags(args, prefix, flags)}
    return sorted(given - (_options(cls) if cls else set()))


def add_objective_flags(parser: ArgumentParser) -> None:
    """Declare the flags of every objective, one group per prefix; objectives with the same prefix share flags."""
    for prefix, flags in _flags().items():
        readers = {name: _options(cls) for name, cls in _all().items() if cls.prefix == prefix}
        group = parser.add_argument_group(f"objectives: {', '.join(readers)}")
        for name, item in flags.items():
            only = [reader for reader, options in readers.items() if f"--{prefix}.{name}" in options]
            add_flags(group, prefix, {name: item}, of="" if len(only) == len(readers) else ", ".join(only))


def _all() -> dict[str, type[Objective]]:
    return {"OpenRLHF's own losses": Upstream, **classes()}


def _flags() -> dict[str, Flags]:
    """All flags by prefix."""
    found: dict[str, Flags] = {}
    for cls in _all().values():
        found.setdefault(cls.prefix, {}).update(flag_fields(cls))
    return found


def _options(cls: type[Objective]) -> set[str]:
    return {f"--{cls.prefix}.{name}" for name in flag_fields(cls)}
