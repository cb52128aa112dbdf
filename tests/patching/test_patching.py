"""Applying and taking off a series, on a three-file package. The real series: test_series.py."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from openrlhf_gpm import patching
from openrlhf_gpm.patching import PatchError, Series

SAMPLE = Path(__file__).parent / "sample" / "openrlhf-0.11.2"  # as `git format-patch` writes them
UTILS = 'import torch\n\n\ndef device():\n    return "cuda"\n\n\ndef name():\n    return "policy"\n'
TRAIN = "from openrlhf.utils import device\n\nprint(device())\n"

PATCHED = {
    "openrlhf/__init__.py": "",
    "openrlhf/cli/train.py": "from openrlhf.utils import device\n\n\ndef main():\n    print(device())\n",
    "openrlhf/plugins/seam.py": 'def load():\n    return ["é"]\n',
    "openrlhf/utils.py": UTILS.replace('"cuda"', "accelerator()").replace('"policy"', "load()"),
}
PRISTINE = {"openrlhf/__init__.py": "", "openrlhf/cli/train.py": TRAIN, "openrlhf/utils.py": UTILS}


def read(site: Path) -> dict[str, str]:
    """Every file below `site` but bytecode."""
    return {
        str(path.relative_to(site)): path.read_text(encoding="utf-8")
        for path in site.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def write(site: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    return site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write(tmp_path / "site", PRISTINE)


@pytest.fixture
def series(tmp_path: Path) -> Series:
    folder = shutil.copytree(SAMPLE, tmp_path / SAMPLE.name)
    patching.write_manifest(write(tmp_path / "pristine", PRISTINE), folder)
    return patching.read_series(folder)


def test_manifest_holds_the_hash_before_and_after_and_null_for_a_created_file(series: Series):
    digest = {path: sha256(text.encode()).hexdigest() for path, text in {**PRISTINE, **PATCHED}.items()}
    assert series.version == "0.11.2"
    assert list(series.files) == ["openrlhf/cli/train.py", "openrlhf/plugins/seam.py", "openrlhf/utils.py"]
    assert series.files["openrlhf/utils.py"] == {
        "pristine": sha256(UTILS.encode()).hexdigest(),
        "patched": digest["openrlhf/utils.py"],
    }
    assert series.files["openrlhf/plugins/seam.py"] == {
        "pristine": None,
        "patched": digest["openrlhf/plugins/seam.py"],
    }


def test_apply_gives_the_patched_files_and_revert_the_first_ones_byte_for_byte(site: Path, series: Series):
    openrlhf = site / "openrlhf"
    assert patching.status(openrlhf, series).state == "pristine"
    assert patching.apply(openrlhf, series) == list(series.files)
    assert read(site) == PATCHED
    assert patching.status(openrlhf, series).state == "patched"
    assert patching.revert(openrlhf, series) == list(series.files)
    assert read(site) == PRISTINE
    assert not (openrlhf / "plugins").exists()  # the folder that held only the created file


def test_apply_and_revert_a_second_time_change_nothing(site: Path, series: Series):
    openrlhf = site / "openrlhf"
    assert patching.revert(openrlhf, series) == []
    patching.apply(openrlhf, series)
    inode = (openrlhf / "utils.py").stat().st_ino
    assert patching.apply(openrlhf, series) == []
    assert (openrlhf / "utils.py").stat().st_ino == inode


@pytest.mark.parametrize("done", list(PATCHED)[1:])
@pytest.mark.parametrize(("step", "result"), [(patching.apply, PATCHED), (patching.revert, PRISTINE)])
def test_a_run_cut_off_half_way_is_taken_up(site: Path, series: Series, done: str, step, result):
    write(site, {done: PATCHED[done]})
    assert patching.status(site / "openrlhf", series).state == "partly patched"
    step(site / "openrlhf", series)
    assert read(site) == result


@pytest.mark.parametrize("step", [patching.apply, patching.revert])
def test_a_file_that_somebody_edited_is_named_and_nothing_changes(site: Path, series: Series, step):
    edited = write(site, {"openrlhf/utils.py": UTILS + "# mine\n"})
    before = read(edited)
    with pytest.raises(
        PatchError, match=r"openrlhf/utils\.py is neither .* pip install --force-reinstall --no-deps openrlhf=="
    ):
        step(site / "openrlhf", series)
    assert read(site) == before
    assert patching.status(site / "openrlhf", series).state == "unknown"


def test_a_stranger_where_the_series_creates_a_file_must_be_deleted_first(site: Path, series: Series):
    write(site, {"openrlhf/plugins/seam.py": "# another\n"})
    with pytest.raises(PatchError, match=r"openrlhf/plugins/seam\.py is neither .*; delete it, then pip install"):
        patching.apply(site / "openrlhf", series)


def test_a_missing_file_is_named(site: Path, series: Series):
    (site / "openrlhf/cli/train.py").unlink()
    with pytest.raises(PatchError, match=r"openrlhf/cli/train\.py is missing; pip install"):
        patching.apply(site / "openrlhf", series)


def test_a_linked_package_is_refused_because_others_may_use_it(site: Path, series: Series, tmp_path: Path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "openrlhf").symlink_to(site / "openrlhf")
    with pytest.raises(PatchError, match="symbolic link"):
        patching.apply(linked / "openrlhf", series)
    assert read(site) == PRISTINE


def test_a_hardlinked_file_is_replaced_and_its_twin_in_a_package_cache_kept(
    site: Path, series: Series, tmp_path: Path
):
    twin = tmp_path / "cache.py"
    os.link(site / "openrlhf/utils.py", twin)
    patching.apply(site / "openrlhf", series)
    assert twin.read_text() == UTILS


def test_when_one_file_cannot_be_written_none_is_changed(site: Path, series: Series):
    (site / "openrlhf/.utils.py.openrlhf-gpm").mkdir()  # stops root too, unlike permissions; utils.py comes last
    with pytest.raises(PatchError, match=r"cannot write .*utils\.py.*nothing was changed; run as the owner"):
        patching.apply(site / "openrlhf", series)
    assert read(site) == PRISTINE


def test_patches_and_manifest_that_disagree_change_nothing(site: Path, series: Series):
    patch = series.patches[0]
    patch.write_text(patch.read_text().replace("+    return accelerator()", "+    return other()"))
    with pytest.raises(PatchError, match=r"do not produce the patched openrlhf/utils\.py"):
        patching.apply(site / "openrlhf", series)
    assert read(site) == PRISTINE


def test_bytecode_of_a_replaced_file_is_made_anew(site: Path, series: Series):
    cache = site / "openrlhf/plugins/__pycache__"
    patching.apply(site / "openrlhf", series)
    assert [path.name.split(".")[0] for path in cache.iterdir()] == ["seam"]
    out = subprocess.run(
        [sys.executable, "-c", "from openrlhf.plugins.seam import load; print(load())"],
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "['é']\n"


def test_a_patch_without_final_newline_is_refused_because_the_library_would_add_one(series: Series, site: Path):
    patch = series.patches[0]
    patch.write_text(patch.read_text().replace("-- \n", "\\ No newline at end of file\n-- \n"))
    with pytest.raises(PatchError, match="without a final newline"):
        patching.apply(site / "openrlhf", series)


def test_the_installed_openrlhf_is_found_without_importing_it():
    code = (
        "import sys; from openrlhf_gpm import patching; print(patching.find_openrlhf().name);"
        "print([name for name in sys.modules if name.split('.')[0] in ('openrlhf', 'ray', 'deepspeed', 'torch')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "openrlhf\n[]\n"
