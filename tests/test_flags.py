"""Flags that are dataclass fields: declared, read back and told apart from their defaults."""

from argparse import ArgumentParser
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from openrlhf_gpm.flags import add_flags, check_choices, flag, flag_fields, given_flags, read_flags


@dataclass(frozen=True, kw_only=True)
class Oven:
    """One flag of each kind, and a field that is none."""

    degrees: float = flag(180.0, "heat, in degrees")
    trays: int = flag(2, "how many")
    fan: bool = flag(False, "move the air")
    mode: str = flag("both", "where the heat comes from", choices=["top", "both"])
    limit: float | None = flag(None, "switch off above this", type=float, metavar="DEGREES")
    by: str = flag("clock", "what ends it", name="end")
    colour: str = "white"


FLAGS = flag_fields(Oven)


def parse(*words: str) -> SimpleNamespace:
    """As OpenRLHF does: `--oven.fan` becomes args.oven.fan."""
    parser = ArgumentParser()
    add_flags(parser, "oven", FLAGS)
    values = vars(parser.parse_args(words)).items()
    return SimpleNamespace(oven=SimpleNamespace(**{name.removeprefix("oven."): value for name, value in values}))


def test_only_fields_made_by_flag_are_flags_under_their_name():
    assert list(FLAGS) == ["degrees", "trays", "fan", "mode", "limit", "end"]
    assert FLAGS["end"].name == "by"


def test_without_words_the_dataclass_has_its_own_defaults():
    args = parse()
    assert Oven(**read_flags(args, "oven", FLAGS)) == Oven()
    assert given_flags(args, "oven", FLAGS) == []


def test_words_become_fields_of_the_type_of_the_default():
    words = ["--oven.degrees", "200", "--oven.trays", "3", "--oven.fan", "--oven.mode", "top", "--oven.limit", "250"]
    args = parse(*words, "--oven.end", "bell")
    read = Oven(**read_flags(args, "oven", FLAGS))
    assert read == Oven(degrees=200.0, trays=3, fan=True, mode="top", limit=250.0, by="bell")
    assert isinstance(read.degrees, float)
    assert isinstance(read.trays, int)
    assert given_flags(args, "oven", FLAGS) == [f"--oven.{name}" for name in FLAGS]


def test_a_flag_given_its_default_counts_as_not_given():
    assert given_flags(parse("--oven.trays", "2", "--oven.mode", "both"), "oven", FLAGS) == []


@pytest.mark.parametrize("words", [["--oven.mode", "bottom"], ["--oven.trays", "2.5"], ["--oven.colour", "red"]])
def test_another_choice_another_type_and_a_field_that_is_no_flag_are_refused(words):
    with pytest.raises(SystemExit):
        parse(*words)


def test_a_value_that_is_none_of_the_choices_is_refused_in_python_too():
    check_choices(Oven(mode="top"), "oven")
    with pytest.raises(ValueError, match=r"^--oven\.mode must be top or both, got 'bottom'$"):
        check_choices(Oven(mode="bottom"), "oven")


def test_help_names_the_default_the_choices_and_the_readers(flags_of):
    parser = ArgumentParser()
    add_flags(parser, "oven", FLAGS, of="bakers")
    actions = flags_of(parser)
    assert actions["--oven.degrees"].help == "bakers: heat, in degrees (default: 180.0)"
    assert actions["--oven.degrees"].metavar == "DEGREES"
    assert actions["--oven.limit"].help == "bakers: switch off above this (default: none)"
    assert actions["--oven.fan"].help == "bakers: move the air"  # a switch is off by default
    assert actions["--oven.mode"].choices == ["top", "both"]
    assert "--oven.mode {top,both}" in parser.format_help()
