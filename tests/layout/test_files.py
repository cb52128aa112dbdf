"""What no file of the project may contain, and how long a file may be."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "openrlhf_gpm"
LINES = 300
# Spelled in pieces, or this file would find itself.
MACHINE = re.compile(r"(?<![\w.$}])/" + r"(?:work|root|tmp|home|Users)/" + r"\w")
REGISTRY = re.compile("pypi" + r"\.org|python" + r"hosted\.org|download\." + "pytorch", re.IGNORECASE)


def texts() -> dict[str, str]:
    """Every file that git knows or would add -> its text."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    contents = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    return {name: content.decode("utf-8") for name, content in contents.items() if b"\0" not in content}


def found(pattern: re.Pattern[str]) -> list[str]:
    return [f"{name}: {hit[0]}" for name, text in texts().items() for hit in pattern.finditer(text)]


def test_no_file_holds_a_path_of_somebodys_machine():
    assert found(MACHINE) == []


def test_no_file_names_a_package_registry():
    assert found(REGISTRY) == []


def test_no_file_of_the_package_is_longer_than_300_lines():
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


RENAMING = {"files.py", "patching.py"}


def renames(call: ast.Call) -> bool:
    """Whether a call moves a file: os.replace, os.rename, or `path.replace(target)`; str.replace takes two."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr in ("replace", "rename")):
        return False
    return ast.unparse(call.func.value) == "os" or (len(call.args) == 1 and not call.keywords)


def test_files_are_replaced_in_one_place():
    """A file that is written in place is half a file when the run is killed; the writer of files.py knows how."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        if any(renames(call) for call in calls):
            found.add(str(file.relative_to(PACKAGE)))
    assert found <= RENAMING
