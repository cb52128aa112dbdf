"""Room on GPUs, with a program in the place of nvidia-smi that prints what the real one prints."""

import os
from pathlib import Path

import pytest

from openrlhf_gpm.trainer.policy.gpu_memory import wait_for_room
from openrlhf_gpm.trainer.policy.node import Question, answer

FREE, HELD = "79000, 81559", "2000, 81559"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """nvidia_smi(*looks): each look, a list of "free, total" per GPU, is printed once, and the last ever after."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(*looks: list[str]) -> Path:
        for i, look in enumerate(looks):
            (tmp_path / f"look{i}").write_text("".join(f"{gpu}, {row}\n" for gpu, row in enumerate(look)))
        count = tmp_path / "count"
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\nn=$(cat {count} 2>/dev/null || echo 0)\ncat {tmp_path}/look$n\n"
            f"[ $n -ge {len(looks) - 1} ] || echo $((n + 1)) > {count}\n"
        )
        program.chmod(0o755)
        return count

    return write


def test_a_run_waits_until_the_engines_before_it_have_gone(nvidia_smi):
    count = nvidia_smi([HELD, HELD], [FREE, HELD], [FREE, FREE])
    assert wait_for_room(2, 0.5) == ""
    assert count.read_text().strip() == "2"


def test_memory_that_stays_held_is_named_with_its_gpu(nvidia_smi):
    nvidia_smi([FREE, HELD])
    warning = wait_for_room(2, 0.5, seconds=0)
    assert warning.startswith(
        "has 2 GPUs free by Ray's count, but GPU 1 has 2,000 of 81,559 MiB free, and vLLM wants 50%"
    )


def test_gpus_of_another_job_are_not_waited_for(nvidia_smi):
    nvidia_smi([FREE, HELD])
    assert wait_for_room(1, 0.5) == ""  # Ray has given the other to somebody


def test_a_driver_that_does_not_answer_is_named(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVML: Driver/library version mismatch' >&2\nexit 18\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert wait_for_room(1, 0.5) == (
        "cannot look at its GPUs: nvidia-smi ended with 18 (NVML: Driver/library version mismatch)"
    )


def test_without_the_program_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert wait_for_room(8, 0.9) == ""


def test_a_node_warns_of_its_gpus_and_does_not_wait_where_the_run_is_refused_anyway(nvidia_smi):
    nvidia_smi([HELD])
    found = answer(Question(gpus=1, gpu_memory=0.5, gpu_seconds=0))
    assert found["problems"] == {}
    assert "GPU 0 has 2,000 of 81,559 MiB free" in found["warnings"]["GPUs"]
    refused = answer(Question(gpus=1, gpu_memory=0.5, gpu_seconds=0, files={"--data.prompt_dataset": ["/not/there"]}))
    assert refused["warnings"] == {}
