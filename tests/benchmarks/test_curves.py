"""The curves of the pages are drawn from the tables of the pages, and the files are up to date."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import curves
from sfl_flower.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"


def drawn_points(svg: str) -> dict[str, list[float]]:
    """Return the numbers of each series, each spread and each level, by its name."""
    found: dict[str, list[float]] = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if re.fullmatch(r"\w+-\d-(\d+(-spread)?|level)", name := group.get("id", "")):
            parts = [each.get(key, "") for each in group.iter() for key in ("d", "x", "y")]
            found[name] = [float(each) for each in re.findall(r"-?\d+\.?\d*", " ".join(parts))]
    return found


@pytest.mark.parametrize("name", curves.PLOTS)
def test_the_files_show_what_the_pages_say(name: str) -> None:
    file = curves.CURVES / f"{name}.svg"
    held, now = drawn_points(file.read_text(encoding="utf-8")), drawn_points(curves.drawn(name))
    assert held.keys() == now.keys() and len(now) > 8, "run python -m benchmarks.curves"
    for series, numbers in now.items():
        assert numbers and held[series] == pytest.approx(numbers, abs=0.01), (
            f"{series}: a page has changed; run python -m benchmarks.curves"
        )


def test_a_plot_is_the_same_each_time() -> None:
    assert curves.drawn("digits") == curves.drawn("digits")


def test_points_are_those_of_the_tables() -> None:
    probes, scales, rates = curves.panels("digits")
    assert list(probes.series[0].points[0]) == [1, 0.5148, 0.1280]
    assert [probes.level, *scales.series[0].points[-1]] == [0.3165, 0.1, 0.57, 0.0494]
    assert list(rates.series[2].points[-1]) == [0.8, 0.5278, None]
    fashion, net, along = curves.panels("trained")
    assert list(fashion.series[2].points[1]) == [1, 0.7937, 0.0295]
    assert [net.level, along.level] == [0.4723, 0.4849]
    walk = [(x, y) for x, y, _ in along.series[3].points]
    assert walk == [(2, 0.495), (4, 0.494), (8, 0.495), (16, 0.495)]


def test_a_page_that_has_changed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"row": "walk"}, {"row": "walk"}]
    with pytest.raises(ConfigError, match="2 rows are 'walk' after ''; a page has changed"):
        curves.named(rows, "walk")
    monkeypatch.setattr(curves, "RESULTS", tmp_path)
    (tmp_path / "a.md").write_text("# A\n\n| row |\n|---|\n| x |\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no table of means below 'B'"):
        curves.table("a.md", "B")
