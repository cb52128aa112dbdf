"""The real series on the real wheel of OpenRLHF, fetched by pip."""

import compileall
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_gpm import patching

FOLDERS = sorted((Path(__file__).parents[2] / "patches").glob("openrlhf-*"))
PATCHES = sorted(patch for folder in FOLDERS for patch in folder.glob("*.patch"))


def hashes(site: Path) -> dict[str, str]:
    """Every file below `site` but bytecode."""
    files = (path for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


@pytest.fixture(scope="session")
def pristine(folder: Path, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("pristine")
    release = folder.name.replace("-", "==", 1)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-compile",
        "--target",
        str(target),
        release,
    ]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def site(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "site")


def test_apply_compile_revert_gives_every_file_back(site: Path, folder: Path):
    series = patching.read_series(folder)
    before = hashes(site)
    assert patching.apply(site / "openrlhf", series) == list(series.files)
    patched = hashes(site)
    assert {path for path in {**before, **patched} if before.get(path) != patched.get(path)} == set(series.files)
    assert compileall.compile_dir(site / "openrlhf", quiet=1, force=True)
    assert patching.revert(site / "openrlhf", series) == list(series.files)
    assert hashes(site) == before


def test_git_makes_the_same_files_of_the_series(site: Path, folder: Path):
    """An independent reference for what our library does with the patches."""
    series = patching.read_series(folder)
    subprocess.run(["git", "apply", *map(str, series.patches)], cwd=site, check=True)
    assert {path: hashes(site).get(path) for path in series.files} == {
        path: states["patched"] for path, states in series.files.items()
    }


def test_the_manifest_belongs_to_the_patches(site: Path, folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    assert patching.write_manifest(site, copy) == patching.read_series(folder).files, "run `make patch-manifest`"


def test_the_series_lists_every_patch_in_order(folder: Path):
    assert list(patching.read_series(folder).patches) == sorted(folder.glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_each_patch_says_why_whence_and_until_when(patch: Path):
    header = patch.read_text(encoding="utf-8").split("\n---\n")[0]
    fields = dict(re.findall(r"^(Subject|Origin|Forwarded|Remove-When|Last-Update): (.+)$", header, re.MULTILINE))
    assert set(fields) == {"Subject", "Origin", "Forwarded", "Remove-When", "Last-Update"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", fields["Last-Update"])
    why = header.split("\n\n", 1)[1].split("\nOrigin:")[0]
    assert len(why.split()) >= 10, "the description comes before the fields"


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_no_patch_speaks_of_preference_models(patch: Path):
    """Each could be offered to OpenRLHF as it is."""
    added = [line for line in patch.read_text(encoding="utf-8").splitlines() if re.match(r"\+(?!\+\+ )", line)]
    assert [line for line in added if re.search(r"gpm|gpo|sppo|general preference", line, re.IGNORECASE)] == []
