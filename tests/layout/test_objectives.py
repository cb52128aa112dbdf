"""An objective is one short file, its test and its row in the documentation; no other file knows its name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf_gpm import objectives

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "openrlhf_gpm"
LINES = 80
every_objective = pytest.mark.parametrize("name", objectives.classes())


def spoken(file: Path) -> Iterator[str]:
    """The identifiers of a file in snake case, and its strings that are a single word.

    Prose (docstrings, errors, help) and the prefix of an objective's flags are left out: what counts is what a file
    can branch on.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    prefixes = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "prefix"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prefixes:
            words = [node.value] if re.fullmatch(r"[^-\s]\S*", node.value) else []
        else:
            named = ("id", "attr", "arg", "name", "module", "asname")
            words = [getattr(node, field) for field in named if isinstance(getattr(node, field, None), str)]
        for word in words:
            yield re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|\W", "_", word).lower()


def says(file: Path, name: str) -> bool:
    return any(f"_{name}_" in f"_{word}_" for word in spoken(file))


@every_objective
def test_an_objective_is_named_in_its_own_file_only(name: str):
    file = PACKAGE / f"objectives/{name}.py"
    assert says(file, name)  # by the name of its class
    assert [str(other) for other in PACKAGE.rglob("*.py") if other != file and says(other, name)] == []


@every_objective
def test_an_objective_has_a_test_and_a_row_in_the_documentation(name: str):
    assert (ROOT / f"tests/objectives/test_{name}.py").exists()
    rows = (ROOT / "docs/objectives.md").read_text(encoding="utf-8").splitlines()
    assert len([row for row in rows if row.startswith(f"| `{name}` |")]) == 1


@every_objective
def test_an_objective_is_a_short_file_that_cites_its_paper(name: str):
    text = (PACKAGE / f"objectives/{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert re.search(r"\barXiv \d{4}\.\d{5}\b", docstring)


@every_objective
def test_the_rooms_that_run_an_objective_never_speak_of_one(name: str):
    """Not in help texts or comments either: what is said of an objective is said in its file and in the docs."""
    rooms = [file for room in ("core", "trainer", "cli") for file in (PACKAGE / room).rglob("*.py")]
    word = re.compile(rf"\b{name}\b", re.IGNORECASE)
    assert [
        str(file) for file in (PACKAGE / "plugin.py", *rooms) if word.search(file.read_text(encoding="utf-8"))
    ] == []
