"""A browser of the machine, for tests that look at a page."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NONE = Path(__file__).resolve().parents[2] / ".venv" / ".no-browser"
"""Where scripts/browser.sh says that the machine's source of packages gave none."""
REMEDY = (
    "there is no browser to look at the page with; install chromium (scripts/browser.sh does where "
    "it may), or name one in SFL_BROWSER"
)


def browser() -> str:
    """Return the path of a browser; without one the test fails in CI and is skipped elsewhere.

    It is skipped in CI too where the machine tried to install one and got none.
    """
    named = os.environ.get("SFL_BROWSER")
    for name in [named] if named else NAMES:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI", "").lower() in ("1", "true") and not NONE.exists():
        pytest.fail(REMEDY)
    pytest.skip(REMEDY)
