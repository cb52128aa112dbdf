"""What one node of a Ray cluster says about itself. It runs there, so it imports little."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf_gpm.files import one_line
from openrlhf_gpm.trainer.policy.gpu_memory import SECONDS, wait_for_room

PACKAGES = ("openrlhf-gpm", "openrlhf", "vllm", "torch", "transformers", "ray")
SHARED = "put it on storage that all nodes share, under the same path"
SHARED_SECONDS = 5.0
"""How long a network file system may take to show a new file."""


@dataclass(frozen=True)
class Question:
    """What the driver asks of every node."""

    models: dict[str, str] = field(default_factory=dict)
    """--flag -> a model's absolute folder or its name on the Hub."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """--flag -> absolute paths that must be there."""

    shared: dict[str, str] = field(default_factory=dict)
    """--flag -> a folder that every node writes to and in which every node sees the same files."""

    probe: str = ""
    """The name of a file that the driver has put into each shared folder."""

    flash: bool = False
    """Whether nodes with GPUs need flash_attn."""

    gpus: int = 0
    """GPUs of the node that Ray calls free."""

    gpu_memory: float = 0.0
    """The share of a GPU's memory that vLLM wants free; 0 where no GPU is used."""

    gpu_seconds: float = SECONDS
    """How long to wait for it."""


def answer(question: Question) -> dict[str, dict[str, str]]:
    """{"versions": package -> version, "models": flag -> its files and sizes, "problems": what -> one line}.

    "warnings", as problems, are not the end of a run. Room on GPUs is waited for where there is no problem.
    """
    problems = {"patch": _patch_problem(), "flash": _flash_problem() if question.flash else ""}
    models = {}
    for flag, name in question.models.items():
        problems[flag] = _model_problem(flag, name)
        if os.path.isabs(name) and not problems[flag]:
            models[flag] = model_files(name)
    for flag, paths in question.files.items():
        missing = [path for path in paths if not os.access(path, os.R_OK)]
        problems[flag] = f"cannot read {flag} {missing[0]}: {SHARED}" if missing else ""
    for flag, folder in question.shared.items():
        problems[flag] = _shared_problem(flag, Path(folder), question.probe)
    problems = {what: line for what, line in problems.items() if line}
    ask = question.gpu_memory > 0 and not problems
    room = wait_for_room(question.gpus, question.gpu_memory, question.gpu_seconds) if ask else ""
    return {"versions": versions(), "models": models, "problems": problems, "warnings": {"GPUs": room} if room else {}}


def versions() -> dict[str, str]:
    """Installed versions of what must be the same on every node."""
    found = {}
    for package in PACKAGES:
        for name in (package, f"{package}-cpu"):
            try:
                found[package] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                found[package] = "missing"
    return found


def model_files(folder: str) -> str:
    """A model's config and weight files with their sizes, to compare nodes by."""
    patterns = ("config.json", "*.safetensors", "*.bin")
    files = sorted(file for pattern in patterns for file in Path(folder).glob(pattern))
    return ", ".join(f"{file.name} {file.stat().st_size} bytes" for file in files)


def _patch_problem() -> str:
    from openrlhf_gpm import patching

    try:
        status = patching.status()
        patching.check_known(status)
    except patching.PatchError as error:
        return str(error)
    return "" if status.state == "patched" else f"has OpenRLHF {status.state}; run `openrlhf-gpm patch apply` there"


def _flash_problem() -> str:
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        return f"cannot import flash_attn ({error}): install it there, or pass --ds.attn_implementation sdpa"
    return ""


def _model_problem(flag: str, name: str) -> str:
    if os.path.isabs(name):
        readable = os.access(os.path.join(name, "config.json"), os.R_OK)
        return "" if readable else f"cannot read {flag} {name}: {SHARED}"
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, "config.json")
    except Exception as error:  # the hub's own kinds, and those of the network below it
        return (
            f"cannot get {flag} {name} ({one_line(error)}): no such folder there, and not from the Hub; give an "
            "absolute path, or set HF_TOKEN (gated models) and HF_HOME where the run starts"
        )
    return ""


def _shared_problem(flag: str, folder: Path, probe: str) -> str:
    end = time.monotonic() + SHARED_SECONDS
    while not (folder / probe).exists():
        if time.monotonic() > end:
            return f"does not see the driver's files in {flag} {folder}: {SHARED}"
        time.sleep(0.2)
    own = folder / f".node-{uuid.uuid4().hex}"
    try:
        own.touch(exist_ok=False)
        own.unlink()
    except OSError as error:
        return f"cannot write to {flag} {folder}: {error.strerror}"
    return ""
