"""The documentation speaks of flags, tests, files and targets that exist."""

import importlib
import re
from pathlib import Path

import pytest

from openrlhf_gpm import objectives
from openrlhf_gpm.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
# Our own flags; each must be documented.
PREFIXES = ("reward_model_type", "gpm.", "frozen.", *(f"{cls.prefix}." for cls in objectives.classes().values()))


@pytest.fixture(scope="module")
def flags(flags_of) -> set[str]:
    """Those of OpenRLHF's two commands, with ours."""
    commands = [importlib.import_module(f"openrlhf.cli.{name}") for name in ("train_rm", "train_ppo_ray")]
    return {flag for command in commands for flag in flags_of(command.build_parser())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_on_a_page_exists(page: Path, flags: set[str], flags_of):
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    measured = set(re.findall(r'add_argument\("(--\w+)"', scripts))
    named = set(re.findall(r"--[a-z]+[._][\w.]*\w", page.read_text(encoding="utf-8")))
    assert named - flags - set(flags_of(build_parser())) - measured == set()


def test_the_user_guide_explains_every_flag_of_ours(flags: set[str]):
    guide = (ROOT / "docs/user-guide.md").read_text(encoding="utf-8")
    ours = {flag for flag in flags if flag.removeprefix("--").startswith(PREFIXES)}
    assert {flag for flag in ours if f"`{flag}`" not in guide} == set()
    assert ours


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_holds_marks_of_a_merge(page: Path):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.match(r"(<<<<<<<|=======|>>>>>>>)( |$)", line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_on_a_page_exists(page: Path):
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_file_on_a_page_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:examples|docs|tests|patches|requirements)/[\w./-]+)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_make_target_on_a_page_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        target for page in PAGES for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text("utf-8"), re.M)
    }
    assert named - targets == set()
