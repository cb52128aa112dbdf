"""Name, version, extras and entry points. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
OPENRLHF = "0.11.2"  # the release that patches/ belongs to; it pins vllm, flash-attn, ray, deepspeed and transformers


def version() -> str:
    """The version of openrlhf_gpm, read as text: importing the package would need torch while it is being built."""
    init = (ROOT / "openrlhf_gpm" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', init, re.MULTILINE).group(1)


setup(
    name="openrlhf-gpm",
    version=version(),
    description="General Preference Models for OpenRLHF: rewards that can express cycles, GPO and SPPO self-play",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The patches travel inside the wheel as openrlhf_gpm/_patches; a checkout reads them from patches/.
    packages=[*find_packages(include=["openrlhf_gpm", "openrlhf_gpm.*"]), "openrlhf_gpm._patches"],
    package_dir={"openrlhf_gpm._patches": "patches"},
    package_data={
        "openrlhf_gpm._patches": ["*/series", "*/*.patch", "*/manifest.json"],
        "openrlhf_gpm": ["look.css"],
        "openrlhf_gpm.serving": ["ui.html", "ui.css", "ui.js"],
        "openrlhf_gpm.winrate": ["page.html", "page.css", "page.js"],
    },
    # Load, score with and evaluate a GPM.
    install_requires=["torch>=2.6", "transformers>=5.15", "safetensors", "numpy", "networkx", "tqdm"],
    extras_require={
        "openrlhf": [f"openrlhf[vllm]=={OPENRLHF}", "patch-ng>=1.19"],  # GPU clusters: vllm and flash-attn with it
        "eval": ["datasets", "matplotlib", "pyarrow"],
        "serve": ["fastapi", "uvicorn", "prometheus_client"],
        "dev": [
            "pytest>=9",
            "pytest-cov",
            "httpx",
            "hypothesis",
            "playwright",
            "ruff",
            "mypy",
            "scipy",
            "patch-ng>=1.19",
        ],
    },
    entry_points={
        "console_scripts": ["openrlhf-gpm = openrlhf_gpm.cli.main:main"],
        "openrlhf.plugins": ["gpm = openrlhf_gpm.plugin:GPMPlugin"],
    },
)
