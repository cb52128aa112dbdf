"""The script for a machine with a GPU: stages that fail, that take too long and that cannot run, and its report."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = spec_from_file_location("gpu", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


@pytest.fixture
def states(gpu, tmp_path):
    """states(*stages, seconds) -> {stage: its entry in the report}."""

    def states(*stages, seconds=60.0):
        gpu.report(list(stages), False, "CPU", tmp_path / "out" / "gpu.json", seconds)
        return {each["stage"]: each for each in json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]}

    return states


def python(code):
    return [sys.executable, "-c", code]


def test_a_failing_stage_keeps_its_last_lines_and_the_next_one_runs(gpu, states):
    bad = gpu.Stage("bad", python("for i in range(50): print(i)\nraise SystemExit(3)"))
    found = states(bad, gpu.Stage("good", python("print('fine')")))
    assert (found["bad"]["state"], found["bad"]["why"]) == ("failed", "exit status 3")
    assert found["bad"]["tail"] == [str(i) for i in range(30, 50)]
    assert (found["good"]["state"], found["good"]["tail"]) == ("passed", ["fine"])


def test_the_report_is_there_while_later_stages_run(gpu, states, tmp_path):
    look = f"import json; print(json.load(open({str(tmp_path / 'out' / 'gpu.json')!r}))['stages'][0]['state'])"
    assert states(gpu.Stage("one", python("")), gpu.Stage("two", python(look)))["two"]["tail"] == ["passed"]


def test_a_stage_ends_when_the_time_is_over_and_those_after_it_are_skipped(gpu, states):
    endless = gpu.Stage("endless", python("import sys; sys.stdin.readline()\nwhile True: pass"))
    found = states(endless, gpu.Stage("late", python("")), seconds=1.0)
    assert found["endless"]["state"] == "out of time"
    assert (found["late"]["state"], found["late"]["why"]) == ("skipped", "the 1 s are over")


def test_what_cannot_run_says_what_is_missing(gpu, states):
    found = states(
        gpu.Stage("absent", python(""), modules=("no_such_module", "json")),
        gpu.Stage("cuda", python(""), cuda=True),
        gpu.Stage("after", python(""), after="absent"),
    )
    assert {name: each["why"] for name, each in found.items()} == {
        "absent": "not installed: no_such_module",
        "cuda": "no CUDA device",
        "after": "needs what absent trains",
    }
    assert {each["state"] for each in found.values()} == {"skipped"}


def test_the_letter_of_an_architecture_is_left_out(gpu, states, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a 10.0f+PTX")
    show = python("import os; print(os.environ['TORCH_CUDA_ARCH_LIST'])")
    assert states(gpu.Stage("show", show))["show"]["tail"] == ["8.0;9.0 10.0+PTX"]


def test_the_stages_name_files_that_there_are(gpu, tmp_path):
    root = SCRIPT.parents[1]
    for stage in gpu.stages(tmp_path, cuda=True):
        for word in " ".join(stage.command).split():
            if word.endswith((".py", ".sh")):
                assert (root / word).exists()
