"""Checks, applies and reverts the patch series on an installed OpenRLHF.

patches/openrlhf-<version>/ holds numbered patches, `series` (their order) and `manifest.json`: for each touched file
its SHA-256 before ("pristine", null for a file that the series creates) and after ("patched"). A file is replaced only
if its content is one of the two, and only by content whose hash is the other. A file that is neither is left alone and
named. So apply and revert are idempotent, and complete a run that was cut off half-way.
"""

from __future__ import annotations

import compileall
import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_gpm.outputs import one_writer


class PatchError(ValueError):
    """OpenRLHF cannot be patched or restored. The text is one line that names the file and the remedy."""


@dataclass(frozen=True)
class Series:
    """One folder of patches/. `files` maps a path ("openrlhf/...") to its hashes, {"pristine", "patched"}."""

    version: str
    patches: tuple[Path, ...]
    files: dict[str, dict[str, str | None]]

    @property
    def reinstall(self) -> str:
        return f"pip install --force-reinstall --no-deps openrlhf=={self.version}"


@dataclass(frozen=True)
class Status:
    """State of an installed OpenRLHF. `files` maps a path to "pristine", "patched", "unknown" or "missing"."""

    openrlhf: Path
    version: str
    files: dict[str, str]

    @property
    def state(self) -> str:
        """ "pristine", "patched", "partly patched" (run apply or revert again) or "unknown" (reinstall)."""
        states = set(self.files.values())
        if states & {"unknown", "missing"}:
            return "unknown"
        return states.pop() if len(states) == 1 else "partly patched"


def find_openrlhf() -> Path:
    """The folder of the openrlhf package that Python would import, found without importing it."""
    spec = importlib.util.find_spec("openrlhf")
    if spec is None or not spec.submodule_search_locations:
        raise PatchError('openrlhf is not installed; pip install "openrlhf-gpm[openrlhf]", or `make install` for CPU')
    return Path(next(iter(spec.submodule_search_locations)))


def patches_dir() -> Path:
    """The folder of the patches: inside the package in a wheel, at the top of a checkout or an editable install."""
    package = Path(__file__).parent
    for folder in (package / "_patches", package.parent / "patches"):
        if folder.is_dir():
            return folder
    raise PatchError(
        "openrlhf-gpm was installed without its patches; pip install --force-reinstall --no-deps openrlhf-gpm"
    )


def read_series(folder: Path) -> Series:
    """The series in `folder`, whose name ends in the OpenRLHF version: openrlhf-0.11.2."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        raise PatchError(f"{manifest} is missing; run `make patch-manifest`")
    files = json.loads(manifest.read_text(encoding="utf-8"))
    return Series(folder.name.removeprefix("openrlhf-"), tuple(_patches(folder)), files)


def installed_series() -> Series:
    """The series for the installed OpenRLHF version."""
    find_openrlhf()
    version = importlib.metadata.version("openrlhf")
    folder = patches_dir() / f"openrlhf-{version}"
    if not folder.is_dir():
        known = sorted(other.name.removeprefix("openrlhf-") for other in patches_dir().glob("openrlhf-*"))
        raise PatchError(
            f"openrlhf {version} is installed but the patches are for {known}; "
            f"pip install --force-reinstall --no-deps openrlhf=={known[-1]}"
        )
    return read_series(folder)


def status(openrlhf: Path | None = None, series: Series | None = None) -> Status:
    """The state of every file that the series touches. Defaults: the installed package and its series."""
    series = series or installed_series()
    openrlhf = openrlhf or find_openrlhf()
    files = {path: _state(openrlhf.parent / path, hashes) for path, hashes in series.files.items()}
    return Status(openrlhf, series.version, files)


def check_known(found: Status, series: Series | None = None) -> None:
    """Raise PatchError for the first file that is neither as released nor as patched."""
    series = series or installed_series()
    bad = [path for path, state in found.files.items() if state in ("unknown", "missing")]
    if not bad:
        return
    missing = found.files[bad[0]] == "missing"
    what = "is missing" if missing else f"is neither the file of openrlhf {series.version} nor our patched one"
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    # pip does not know a file that the series creates, and so would not remove it.
    delete = "delete it, then " if series.files[bad[0]]["pristine"] is None else ""
    raise PatchError(f"{found.openrlhf.parent / bad[0]} {what}{more}; {delete}{series.reinstall}")


def apply(openrlhf: Path | None = None, series: Series | None = None) -> list[str]:
    """Patch OpenRLHF in place. Returns the paths that changed: none if all were already patched."""
    return _switch("patched", openrlhf, series)


def revert(openrlhf: Path | None = None, series: Series | None = None) -> list[str]:
    """Restore OpenRLHF byte for byte and delete files that the series created. Returns the paths that changed."""
    return _switch("pristine", openrlhf, series)


def write_manifest(pristine: Path, folder: Path) -> dict[str, dict[str, str | None]]:
    """Apply the patches in `folder` to a copy of the tree `pristine` (it holds openrlhf/), and write manifest.json."""
    touched = {path for patch in _patches(folder) for path in _touched(patch)}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _copy(pristine, root, touched)
        before = {path: _sha256(root / path) for path in touched}
        _run_patches(_patches(folder), root, touched)
        files = {path: {"pristine": before[path], "patched": _sha256(root / path)} for path in sorted(touched)}
    (folder / "manifest.json").write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    return files


def _switch(goal: str, openrlhf: Path | None, series: Series | None) -> list[str]:
    """Bring every file to its `goal` state. Check all, compute all in a scratch copy, stage all, rename one by one."""
    series = series or installed_series()
    found = status(openrlhf, series)
    check_known(found, series)
    site = found.openrlhf.parent
    if all(state == goal for state in found.files.values()) and not _left_waiting(site, series):
        return []
    with one_writer(found.openrlhf):
        for new in _left_waiting(site, series):
            new.unlink()
            _remove_empty(new.parent)
        return _switch_files(goal, status(openrlhf, series), series)


def _switch_files(goal: str, found: Status, series: Series) -> list[str]:
    """`_switch`, alone in the package."""
    site = found.openrlhf.parent
    todo = {path for path, state in found.files.items() if state != goal}
    for target in [found.openrlhf, *(site / path for path in sorted(todo))]:
        if target.is_symlink():
            raise PatchError(
                f"{target} is a symbolic link to {target.resolve()}, which others may use; "
                f"install a separate copy: {series.reinstall}"
            )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _copy(site, root, todo)
        _run_patches(series.patches, root, todo, reverse=goal == "pristine")
        for path in sorted(todo):
            if _sha256(root / path) != series.files[path][goal]:
                raise PatchError(
                    f"the patches do not produce the {goal} {path} of manifest.json; nothing was changed; "
                    "run `make patch-manifest` after editing a patch"
                )
        _replace(root, site, sorted(todo))
    return sorted(todo)


def _replace(root: Path, site: Path, paths: list[str]) -> None:
    """Move the computed files into place. What can fail (space, permissions) happens before the first one moves."""
    staged: list[tuple[Path, Path]] = []
    try:
        for path in paths:
            target = site / path
            if (root / path).exists():
                new = _staged_name(target)
                staged.append((new, target))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, new)
                if target.exists():
                    shutil.copymode(target, new)
    except OSError as error:
        for new, target in staged:
            if new.is_file():
                new.unlink()
            _remove_empty(target.parent)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space there" if full else "run as the owner of this Python environment"
        raise PatchError(f"cannot write {error.filename}: {error.strerror}; nothing was changed; {remedy}") from error
    for new, target in staged:
        os.replace(new, target)
        # Python would keep the old bytecode for a new file with the same size and the same second.
        compileall.compile_file(target, quiet=2, force=True)
    for target in (site / path for path in paths if not (root / path).exists()):
        target.unlink()
        Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)
        _remove_empty(target.parent)


def _staged_name(target: Path) -> Path:
    """Where a file waits beside its place until all files are there."""
    return target.with_name(f".{target.name}.openrlhf-gpm")


def _left_waiting(site: Path, series: Series) -> list[Path]:
    """What a run that was killed left."""
    return [new for path in series.files if (new := _staged_name(site / path)).is_file()]


def _remove_empty(folder: Path) -> None:
    """Remove a folder that held only files of ours, and its bytecode folder."""
    for empty in (folder / "__pycache__", folder):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def _run_patches(patches: Iterable[Path], root: Path, only: set[str], reverse: bool = False) -> None:
    """Apply to the tree `root` (or revert) the parts of each patch that touch the paths `only`."""
    patches = list(patches)
    for patch in reversed(patches) if reverse else patches:
        parsed = _parse(patch)
        created = {_path(item.target) for item in parsed.items if item.source == b"/dev/null"} & only
        parsed.items = [item for item in parsed.items if _path(item.target) in only - (created if reverse else set())]
        if not (parsed.revert(root=str(root)) if reverse else parsed.apply(root=str(root))):
            raise PatchError(
                f"{patch.name} does not fit; nothing was changed; was it edited without `make patch-manifest`?"
            )
        if reverse:  # patch-ng's revert would write a created file again instead of removing it
            for path in created:
                (root / path).unlink()


def _parse(patch: Path) -> Any:
    try:
        import patch_ng
    except ImportError as error:
        raise PatchError("patching needs patch-ng: pip install patch-ng") from error
    # patch-ng 1.19 ignores this marker and would add a newline to the file. No file of OpenRLHF needs it.
    if b"\n\\ No newline at end of file" in patch.read_bytes():
        raise PatchError(f"{patch} touches the end of a file without a final newline; give the file one")
    parsed = patch_ng.fromfile(str(patch))
    if not parsed:
        raise PatchError(f"{patch} is not a readable patch; reinstall openrlhf-gpm")
    return parsed


def _patches(folder: Path) -> list[Path]:
    """The patches of a series in order: one name per line, # starts a comment."""
    lines = (folder / "series").read_text(encoding="utf-8").splitlines()
    return [folder / name for line in lines if (name := line.split("#")[0].strip())]


def _touched(patch: Path) -> list[str]:
    return [_path(item.target) for item in _parse(patch).items]


def _path(name: bytes) -> str:
    return name.decode("utf-8").removeprefix("b/")


def _copy(site: Path, root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        if (site / path).exists():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(site / path, root / path)


def _state(file: Path, hashes: dict[str, str | None]) -> str:
    content = _sha256(file)
    for state in ("pristine", "patched"):
        if content == hashes[state]:
            return state
    return "missing" if content is None else "unknown"


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
