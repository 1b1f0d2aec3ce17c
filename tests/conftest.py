"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of numbers recorded from the original; tests of equality with it skip where it is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("GLIDE_REFERENCE", beside))
    if not (folder / "configs.json").is_file():
        pytest.skip(f"no numbers of the original at {folder}; GLIDE_REFERENCE may name their folder")
    return folder
