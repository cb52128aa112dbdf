"""Who imports whom: the arrow between the parts of the package, what each part needs, and no circles."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "openrlhf_gpm"
FACE = PACKAGE / "__init__.py"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [  # a part imports lower floors only, never another part of its own floor
    {"lock", "json_lines", "look"},
    {"core", "config", "flags", "files", "outputs", "fingerprint"},
    {"patching"},
    {"objectives", "data", "samples"},
    {"models"},
    {"checkpoints"},
    {"scoring"},
    {"evaluation", "serving", "trainer", "winrate"},
    {"plugin", "cli"},
]
NEEDS = {  # what each part imports besides the standard library and this package; nothing where it is not listed
    "core": {"torch"},
    "patching": {"patch_ng"},
    "objectives": {"torch"},
    "data": {"datasets", "pyarrow"},
    "samples": {"torch"},
    "models": {"torch", "transformers"},
    "checkpoints": {"huggingface_hub", "peft", "safetensors", "torch", "transformers"},
    "scoring": {"numpy", "ray", "torch", "vllm"},
    "evaluation": {"matplotlib", "networkx", "numpy", "torch"},
    "serving": {"fastapi", "prometheus_client", "torch", "uvicorn"},
    "trainer": {"deepspeed", "huggingface_hub", "openrlhf", "ray", "safetensors", "torch", "tqdm"},
    "winrate": {"matplotlib", "torch"},
    "plugin": {"openrlhf"},
    "cli": {"tqdm"},
}
CLUSTER = {"openrlhf", "ray", "deepspeed"}
SERVE = {"fastapi", "uvicorn", "prometheus_client"}
INSIDE_OPENRLHF = {
    PACKAGE / "plugin.py",
    PACKAGE / "trainer/checkpoint_checks.py",
    PACKAGE / "trainer/self_play.py",
    *PACKAGE.glob("trainer/reward/*.py"),
    *PACKAGE.glob("trainer/policy/*.py"),
}
ONE_FILE = {
    "vllm": PACKAGE / "scoring/vllm_backend.py",
    "fastapi": PACKAGE / "serving/app.py",
    "uvicorn": PACKAGE / "serving/server.py",
    "prometheus_client": PACKAGE / "serving/metrics.py",
}


def short(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def part_of(file: Path) -> str:
    """The room or the module of the top level that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


PARTS = sorted({part_of(file) for file in FILES} - {"__init__"})


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file imports, within functions and for type checkers too; no name in `import x`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(file)}:{node.lineno}: write the whole name of the module"
            yield from ((node.module or "", alias.name) for alias in node.names)


def packages(file: Path) -> set[str]:
    """Third-party packages that a file imports."""
    tops = {module.split(".")[0] for module, _ in imports(file)}
    return tops - set(sys.stdlib_module_names) - {"openrlhf_gpm"}


def files_imported(file: Path) -> set[Path]:
    """Files of the package that a file imports: `from a.b import c` is a/b/c.py, or a/b.py or its folder's face."""
    found = set()
    for module, name in imports(file):
        if module.split(".")[0] == "openrlhf_gpm":
            base = PACKAGE.joinpath(*module.split(".")[1:])
            places = [base / f"{name}.py", base / name / "__init__.py", base.with_suffix(".py"), base / "__init__.py"]
            found.add(next(place for place in places if place.exists()))
    return found


def test_every_part_has_a_floor():
    assert set(PARTS) <= set.union(*FLOORS)
    assert set(NEEDS) <= set.union(*FLOORS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_lower_floors_only(part: str):
    number = next(number for number, floor in enumerate(FLOORS) if part in floor)
    allowed = {part, "__init__", *(other for floor in FLOORS[:number] for other in floor)}
    upwards = {
        (short(file), short(other))
        for file in FILES
        if part_of(file) == part
        for other in files_imported(file)
        if part_of(other) not in allowed
    }
    assert upwards == set()


def test_no_two_files_import_each_other():
    """Not by a third file either; imports inside functions and for type checkers count."""
    graph = {short(file): {short(other) for other in files_imported(file) - {FACE}} for file in FILES}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_the_package_takes_only_its_version_from_its_own_face():
    """The face loads `GPM` on demand; a file below `scoring` that took it from there would hide a circle."""
    taken = {(short(file), name) for file in FILES for module, name in imports(file) if module == "openrlhf_gpm"}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert {(file, name) for file, name in taken if name not in {*modules, "__version__"}} == set()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_needs_exactly_these_packages(part: str):
    found = set().union(*(packages(file) for file in FILES if part_of(file) == part))
    assert found == NEEDS.get(part, set())


def test_openrlhf_ray_and_deepspeed_are_imported_only_by_what_runs_inside_openrlhf():
    """But for the workers of `score`, which are actors of Ray."""
    outside = {short(file): packages(file) & CLUSTER for file in FILES if file not in INSIDE_OPENRLHF}
    assert {file: found for file, found in outside.items() if found} == {"scoring/ray_workers.py": {"ray"}}


@pytest.mark.parametrize("package", ONE_FILE)
def test_what_few_have_installed_is_imported_by_one_file(package: str):
    assert {file for file in FILES if package in packages(file)} == {ONE_FILE[package]}


def test_an_objective_imports_torch_core_flags_and_other_objectives():
    for file in PACKAGE.glob("objectives/*.py"):
        assert packages(file) <= {"torch"}, short(file)
        assert {part_of(other) for other in files_imported(file)} <= {"core", "flags", "objectives"}, short(file)


def private_names(file: Path) -> Iterator[str]:
    """Names with a leading underscore that a file takes from another of ours, by import or as `module._name`."""
    modules = set()
    for module, name in imports(file):
        base = PACKAGE.joinpath(*module.split(".")[1:]) / name
        if module.split(".")[0] == "openrlhf_gpm":
            modules |= {name} if base.is_dir() or base.with_suffix(".py").exists() else set()
            yield from [name] if re.match(r"_(?!_)", name) else []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield from [f"{node.value.id}.{node.attr}"] if re.match(r"_(?!_)", node.attr) else []


def test_no_private_name_is_imported_across_files():
    assert {(short(file), name) for file in FILES for name in private_names(file)} == set()


def run_without(blocked: set[str], code: str) -> str:
    """Output of `code` in a new process in which `blocked` cannot be imported, as if they were not installed."""
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n{code}"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr
    return out.stdout


@pytest.mark.parametrize("module", ["openrlhf_gpm.core", "openrlhf_gpm.objectives"])
def test_formulas_and_objectives_need_torch_alone_and_load_within_a_second(module: str):
    code = (
        f"import time, torch; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)\n"
        f"import openrlhf_gpm.objectives; openrlhf_gpm.objectives.classes()"
    )
    others = set.union(*NEEDS.values()) - {"torch", "numpy"}  # torch imports numpy
    assert float(run_without(others, code)) < 1


def test_scoring_needs_torch_and_transformers_only():
    code = "import openrlhf_gpm.scoring.scorer, openrlhf_gpm.scoring.vllm_backend, openrlhf_gpm.data"
    run_without(CLUSTER | SERVE | {"vllm", "peft", "datasets", "matplotlib", "patch_ng"}, code)


def test_the_reward_function_needs_no_server_and_no_trainer():
    code = "import openrlhf_gpm.serving.trl"
    run_without(CLUSTER | SERVE | {"vllm", "trl", "torch"}, code)


def test_the_server_needs_its_extra_and_scoring_only():
    code = "import openrlhf_gpm.serving.server, openrlhf_gpm.cli.serve"
    run_without(CLUSTER | {"vllm", "peft", "datasets", "matplotlib", "patch_ng"}, code)


@pytest.mark.parametrize("module", ["openrlhf_gpm", "openrlhf_gpm.plugin", "openrlhf_gpm.cli.main"])
def test_the_package_its_plugin_and_its_command_line_load_nothing_heavy(module: str):
    """OpenRLHF loads the plugin in every process, vLLM's workers included."""
    heavy = ["deepspeed", "ray", "torch", "transformers", "vllm"]
    code = f"import {module}, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_without(set(), code) == "[]\n"
