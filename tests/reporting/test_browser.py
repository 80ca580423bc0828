"""The report in a real browser: telephone and desktop, light and dark, and what axe finds."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.reporting.page import write_report
from tests.reporting import browser as browser_module
from tests.reporting.browser import browser

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
"""For containers, where tests are root and shared memory is little."""
SIZES = ((390, 844), (1280, 900))
"""Width and height in pixels of a telephone and of a desktop."""
WIDTH = "document.documentElement.scrollWidth"
LETTERS = """Math.min(...[...document.querySelectorAll('figure svg')].map(
    drawing => 10 * drawing.clientWidth / drawing.viewBox.baseVal.width))"""
"""Pixels of the letters of the smallest chart, which are 10 units high."""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
CURVE = "getComputedStyle(document.querySelector('.legend path')).stroke"


def test_the_browser_is_a_must_in_ci_and_else_a_wish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SFL_BROWSER", "no-such-browser")
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(browser_module, "NONE", tmp_path / "none")
    with pytest.raises(pytest.fail.Exception, match=r"scripts/browser\.sh"):
        browser()
    (tmp_path / "none").touch()
    with pytest.raises(pytest.skip.Exception, match="install chromium"):
        browser()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="install chromium"):
        browser()


def pages(compared: Path, tmp_path: Path) -> list[Path]:
    """Return the report of a comparison, and that of a run which is going, each with all it has."""
    run = RunDirectory.create(
        tmp_path / "going",
        {"task": "digits", "method": "ho_sfl", "rounds": 9, "clients": 4, "seed": 0, "dp_clip": 1},
        tensorboard=False,
    )
    with run:
        for number in range(4):
            run.append(
                RoundRecord(
                    number, 64 * number, 8 * number, 1.5 * number, 2.0 - 0.1 * number,
                    {"accuracy": 0.1 * number}, 4096 * number, 2048 * number, replies=3, failures=1,
                    notes=("Client 3 is left out of this round: " + "it was too late " * 20,),
                    extra={"epsilon": 0.5 * number}, clients={"outlying": (1,)},
                )
            )  # fmt: skip
        return [write_report(compared), write_report(run.path)]


def test_the_page_fits_and_can_be_read_by_everyone(compared: Path, tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    path = browser()
    looks: dict[str, set[Any]] = {"background": set(), "curve": set()}
    with sync.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=ARGUMENTS)
        for page in pages(compared, tmp_path):
            tab = chromium.new_context(offline=True).new_page()
            problems: list[str] = []
            tab.on("console", lambda said, to=problems: to.append(said.text))
            tab.on("requestfailed", lambda asked, to=problems: to.append(asked.url))
            tab.goto(page.as_uri())
            tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            for (width, height), scheme in product(SIZES, ("light", "dark")):
                where = f"{page}, {width}, {scheme}"
                tab.set_viewport_size({"width": width, "height": height})
                tab.emulate_media(color_scheme=scheme)
                assert tab.evaluate(WIDTH) <= width, where
                assert tab.evaluate(LETTERS) >= 9, where
                looks["background"].add((scheme, tab.evaluate(BACKGROUND)))
                looks["curve"].add((scheme, tab.evaluate(CURVE)))
                found = axe.run(tab).response["violations"]
                grave = [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found
                         if v["impact"] in ("serious", "critical")]  # fmt: skip
                assert grave == [], where
            assert problems == []
        chromium.close()
    for seen in looks.values():  # a colour a scheme, and not the same
        assert len(seen) == 2 and len({colour for _, colour in seen}) == 2, seen
