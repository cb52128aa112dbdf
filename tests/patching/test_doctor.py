"""`openrlhf-gpm doctor` and `openrlhf-gpm patch` as a user runs them, in processes of their own."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from openrlhf_gpm.cli.doctor import CPU_ENV

ROOT = Path(__file__).parents[2]
ENV_SH = (ROOT / "examples/cpu/env.sh").read_text(encoding="utf-8")


def openrlhf_gpm(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    env = {name: value for name, value in env.items() if value is not None}
    command = [sys.executable, "-m", "openrlhf_gpm.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def doctor(**environment: str | None) -> dict[str, dict[str, str]]:
    report = json.loads(openrlhf_gpm("doctor", "--json", **environment).stdout)
    return {finding["what"]: finding for finding in report["findings"]}


def test_the_table_ends_with_the_verdict_that_the_exit_status_gives():
    out = openrlhf_gpm("doctor", RAY_ADDRESS=None)
    verdict = "training: yes" if out.returncode == 0 else "training: no"
    assert out.returncode in (0, 1), out.stderr
    assert out.stdout.splitlines()[-1].startswith(verdict)
    assert bool(re.search(r"^fail", out.stdout, re.MULTILINE)) == (out.returncode == 1)


def test_every_fault_says_how_to_fix_it():
    findings = doctor(RAY_ADDRESS=None, PYTHONDONTWRITEBYTECODE="1", **dict.fromkeys(CPU_ENV))
    assert [finding for finding in findings.values() if finding["level"] != "ok" and not finding["fix"]] == []
    assert findings["PYTHONDONTWRITEBYTECODE"]["level"] == "warn"
    assert findings["ray cluster"]["level"] == "warn"


def test_an_architecture_with_a_letter_is_named_before_deepspeeds_builder_meets_it():
    finding = doctor(TORCH_CUDA_ARCH_LIST="8.0 9.0a")["TORCH_CUDA_ARCH_LIST"]
    assert finding["level"] == "warn"
    assert finding["fix"] == "export TORCH_CUDA_ARCH_LIST='8.0 9.0'"
    assert doctor(TORCH_CUDA_ARCH_LIST="9.0")["TORCH_CUDA_ARCH_LIST"]["level"] == "ok"


def test_it_answers_within_three_seconds():
    start = time.perf_counter()
    openrlhf_gpm("doctor")
    assert time.perf_counter() - start < 3


def test_a_dead_ray_address_is_a_failure_and_not_a_wait():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    finding = doctor(RAY_ADDRESS=address)["ray cluster"]
    assert finding["level"] == "fail"
    assert address in finding["found"]


def test_its_advice_for_a_cpu_is_what_env_sh_exports():
    exported = dict(re.findall(r"^export (\w+)=(.+)$", ENV_SH, re.MULTILINE))
    assert {name: exported.get(name) for name in CPU_ENV} == {name: value for name, (value, _) in CPU_ENV.items()}
    assert "unset PYTHONDONTWRITEBYTECODE" in ENV_SH


def test_patch_status_lists_the_files_and_exits_with_0_only_when_all_are_patched():
    out = openrlhf_gpm("patch", "status")
    states = {line.split()[0] for line in out.stdout.splitlines()[1:]}
    assert out.returncode == (0 if states == {"patched"} else 1), out.stderr
