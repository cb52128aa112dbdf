"""What no file of the project may contain."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
