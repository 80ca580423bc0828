"""A comparison to report on, made once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.reporting.results import make_comparison


@pytest.fixture(scope="session")
def _comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "compared"
    make_comparison(folder)
    return folder


@pytest.fixture
def compared(_comparison: Path, tmp_path: Path) -> Path:
    """Return the folder of a comparison, see `make_comparison`."""
    return shutil.copytree(_comparison, tmp_path / "compared")
