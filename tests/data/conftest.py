"""Real preference data, where a machine has it."""

import os
from pathlib import Path

import pytest

VARIABLE = "OPENRLHF_GPM_SHARED_DATA"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data; it is not part of the project."""
    folder = Path(os.environ.get(VARIABLE) or Path(__file__).parents[3] / "shared" / "data")
    if not (folder / "cyc3_train.parquet").exists():
        pytest.skip(f"no real preference data in {folder}; {VARIABLE} can name another folder")
    return folder
