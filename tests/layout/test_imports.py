"""The import arrow: core <- models <- {scoring, data} <- {evaluation, serving, trainer with plugin} <- cli."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "openrlhf_gpm"
LAYER = {
    "core": 0,
    "config": 0,
    "patching": 0,
    "data": 1,
    "samples": 1,
    "models": 2,
    "checkpoints": 3,
    "scoring": 4,
    "evaluation": 5,
    "trainer": 5,
    "plugin": 5,
    "cli": 6,
}
TOGETHER = {"trainer", "plugin"}  # what runs inside OpenRLHF, and the file by which OpenRLHF finds it
CLUSTER = {"openrlhf", "ray", "deepspeed", "vllm"}  # only what runs inside OpenRLHF may need them
MAY_IMPORT = {"scoring": {"vllm"}}  # when an engine starts


def sources(part: str) -> list[Path]:
    """Files of a part: a module, or a folder with all below it."""
    return [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, within functions too."""
    package = ["openrlhf_gpm", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            # `from openrlhf_gpm import core` names a module, `from openrlhf_gpm.core import x` mostly does not
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "openrlhf_gpm" else [base]


def all_imports(part: str) -> set[str]:
    return {name for file in sources(part) for name in imports(file)}


def test_every_part_of_the_package_has_its_place_in_the_arrow():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "_patches"} <= set(LAYER)


@pytest.mark.parametrize("part", LAYER)
def test_a_part_imports_only_lower_parts(part: str):
    own = {name.split(".")[1] for name in all_imports(part) if name.startswith("openrlhf_gpm.")}
    allowed = {part} | (TOGETHER if part in TOGETHER else set())
    assert {other for other in own - allowed if LAYER.get(other, -1) >= LAYER[part]} == set()


def test_core_imports_torch_alone():
    names = {name.split(".")[0] for name in all_imports("core")}
    assert names - {*sys.stdlib_module_names, "openrlhf_gpm"} == {"torch"}


@pytest.mark.parametrize("part", sorted(set(LAYER) - TOGETHER))
def test_openrlhf_and_its_stack_are_imported_in_trainer_and_plugin_only(part: str):
    assert {name.split(".")[0] for name in all_imports(part)} & CLUSTER == MAY_IMPORT.get(part, set())


def run_without(blocked: set[str], code: str) -> str:
    """Output of `code` in a new process in which `blocked` cannot be imported, as if they were not installed."""
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n{code}"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_core_needs_neither_openrlhf_nor_transformers_and_loads_within_a_second():
    code = (
        "import time, torch; start = time.perf_counter(); import openrlhf_gpm.core; print(time.perf_counter() - start)"
    )
    assert float(run_without(CLUSTER | {"transformers"}, code)) < 1


def test_scoring_needs_torch_and_transformers_only():
    code = "import openrlhf_gpm.scoring.scorer, openrlhf_gpm.scoring.vllm_backend, openrlhf_gpm.data"
    run_without(CLUSTER | {"peft", "datasets", "matplotlib", "fastapi", "patch_ng"}, code)


@pytest.mark.parametrize("module", ["openrlhf_gpm", "openrlhf_gpm.plugin", "openrlhf_gpm.cli.main"])
def test_the_package_its_plugin_and_its_command_line_load_nothing_heavy(module: str):
    """OpenRLHF loads the plugin in every process, vLLM's workers included."""
    heavy = ["deepspeed", "ray", "torch", "transformers", "vllm"]
    code = f"import {module}, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_without(set(), code) == "[]\n"
