"""A browser of the machine, for tests that look at a page."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REMEDY = (
    "there is no browser to look at the page with; install chromium (scripts/browser.sh does where "
    "it may), or name one in SFL_BROWSER"
)


def browser() -> str:
    """Return the path of a browser; without one the test fails in CI and is skipped elsewhere."""
    named = os.environ.get("SFL_BROWSER")
    for name in [named] if named else NAMES:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(REMEDY)
    pytest.skip(REMEDY)
