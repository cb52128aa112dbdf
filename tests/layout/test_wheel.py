"""What `pip install openrlhf-gpm` brings."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ("html", "css", "js")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("openrlhf_gpm", "patches"):
        shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(target), "."]
    subprocess.run(command, cwd=source, check=True)
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_the_patches_travel_in_the_wheel(wheel: zipfile.ZipFile):
    files = {str(path.relative_to(ROOT / "patches")) for path in (ROOT / "patches").rglob("*") if path.is_file()}
    shipped = {name.removeprefix("openrlhf_gpm/_patches/") for name in wheel.namelist() if "/_patches/" in name}
    assert files == shipped != set()


def test_the_pages_travel_in_the_wheel(wheel: zipfile.ZipFile):
    files = {str(path.relative_to(ROOT)) for kind in PAGE for path in (ROOT / "openrlhf_gpm").rglob(f"*.{kind}")}
    assert {name for name in wheel.namelist() if name.rpartition(".")[2] in PAGE} == files
    assert {name.split("/")[1] for name in files} == {"look.css", "serving", "winrate"}


def test_every_module_is_in_the_wheel_and_nothing_else_is(wheel: zipfile.ZipFile):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "openrlhf_gpm").rglob("*.py")}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == modules
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"openrlhf_gpm"}


def test_the_entry_points_are_the_command_and_the_plugin(wheel: zipfile.ZipFile):
    points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    lines = wheel.read(points).decode().split("\n")
    assert "openrlhf-gpm = openrlhf_gpm.cli.main:main" in lines
    assert lines[lines.index("[openrlhf.plugins]") + 1] == "gpm = openrlhf_gpm.plugin:GPMPlugin"
