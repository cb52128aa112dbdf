"""Command-line flags that are dataclass fields: default, help and choices are written once, next to their meaning.

A class with the fields `beta` and `hard` and the prefix "gpo" has the flags --gpo.beta and --gpo.hard. OpenRLHF turns
parsed flags into nested namespaces (args.gpo.beta), which `read_flags` reads back. Standard library only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import Field, field, fields
from types import SimpleNamespace
from typing import Any

KEY = "flag"


def flag(default: Any, help: str, *, name: str | None = None, shown: str | None = None, **options: Any) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: of field and flag; False makes a switch. None needs `type` among the options.
        help: of the flag; the default is added to it.
        name: of the flag, where the field has another.
        shown: what the help says of the default, where that is not the default itself.
        options: more arguments of `add_argument`, such as choices, type or metavar.
    """
    assert default is not True, "a switch is off by default: give it the opposite name"
    return field(default=default, metadata={KEY: {"name": name, "help": help, "shown": shown, **options}})


def flag_fields(cls: Any) -> dict[str, Field[Any]]:
    """The fields of a dataclass that are flags, by the flag's name."""
    return {item.metadata[KEY]["name"] or item.name: item for item in fields(cls) if KEY in item.metadata}


def add_flags(parser: Any, prefix: str, flags: Mapping[str, Field[Any]], of: str = "") -> None:
    """Declare --PREFIX.NAME for each of the flags. of: who reads them, put in front of the help.

    parser: an ArgumentParser or one of its argument groups.
    """
    for name, item in flags.items():
        options = {key: value for key, value in item.metadata[KEY].items() if key not in ("name", "shown")}
        options["help"] = (f"{of}: " if of else "") + options["help"]
        options["help"] += "" if item.default is False else f" (default: {_shown(item)})"
        if item.default is False:
            options["action"] = "store_true"
        elif item.default is not None:
            options.setdefault("type", type(item.default))
        if "action" not in options and "choices" not in options:
            options.setdefault("metavar", name.upper())
        parser.add_argument(f"--{prefix}.{name}", default=item.default, **options)


def read_flags(args: SimpleNamespace, prefix: str, flags: Mapping[str, Field[Any]]) -> dict[str, Any]:
    """The values of the flags in parsed arguments, by the field's name."""
    group = getattr(args, prefix)
    return {item.name: getattr(group, name) for name, item in flags.items()}


def given_flags(args: SimpleNamespace, prefix: str, flags: Mapping[str, Field[Any]]) -> list[str]:
    """Those of the flags, as --PREFIX.NAME, that are not at their default."""
    values = read_flags(args, prefix, flags)
    return [f"--{prefix}.{name}" for name, item in flags.items() if values[item.name] != item.default]


def all_flags(args: SimpleNamespace, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(flag without its dashes, value) of everything in nested arguments that JSON can hold."""
    for name, given in vars(args).items():
        if isinstance(given, SimpleNamespace):
            yield from all_flags(given, f"{prefix}{name}.")
        elif given is None or isinstance(given, (str, int, float, list, tuple)):
            yield prefix + name, given


def check_choices(values: Any, prefix: str) -> None:
    """Raise ValueError that names the flag where a field of this dataclass is none of its choices."""
    for name, item in flag_fields(values).items():
        choices, value = item.metadata[KEY].get("choices"), getattr(values, item.name)
        if choices and value not in choices:
            raise ValueError(f"--{prefix}.{name} must be {' or '.join(map(str, choices))}, got {value!r}")


def _shown(item: Field[Any]) -> str:
    return str(item.metadata[KEY]["shown"] or ("none" if item.default is None else item.default))
