"""Figures, their targets, and the command line that prints them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import pytest

from benchmarks import __main__ as command
from benchmarks.figure import Figure
from sfl_flower.errors import ConfigError


class Fake:
    """A benchmark with one option and two figures."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--probe-times", type=int, default=1)

    def run(self, args: argparse.Namespace) -> Iterator[Figure]:
        yield Figure("speed", 2.0 * args.probe_times, "ratio", target=3.0, setting="[a] µ")
        yield Figure("wait_s", 0.5, "s", target=0.3, lower_is_better=True)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load", lambda name: Fake())


@pytest.mark.parametrize(
    ("value", "target", "lower", "met"),
    [
        (0.5, 0.5, False, True),
        (0.49, 0.5, False, False),
        (0.3, 0.3, True, True),
        (0.31, 0.3, True, False),
        (1.0, None, False, None),
        (float("nan"), 0.3, True, False),
        (float("nan"), 0.3, False, False),
    ],
)
def test_a_target_is_met(value: float, target: float | None, lower: bool, met: bool | None) -> None:
    assert Figure("a", value, "s", target, lower_is_better=lower).met is met


def test_json_holds_the_promised_keys() -> None:
    line = Figure("a", 1.5, "s", 2.0, "one thread", lower_is_better=True).to_json()
    expected = {"name": "a", "value": 1.5, "unit": "s", "target": 2.0, "setting": "one thread"}
    assert "\n" not in line
    assert expected.items() <= json.loads(line).items()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_stays_json_without_a_finite_value(value: float) -> None:
    assert json.loads(Figure("a", value, "s").to_json())["value"] is None


@pytest.mark.parametrize("name", ["", "two words", "Upper", "1st"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="snake case"):
        Figure(name, 1.0, "s")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "argv",
    [
        ["probe", "--json", "--probe-times", "2"],
        ["--json", "probe", "--probe-times=2"],
        ["--probe-times", "2", "--json", "probe"],
    ],
)
def test_one_json_object_a_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["name"], line["value"], line["met"]) for line in lines] == [
        ("speed", 4.0, True),
        ("wait_s", 0.5, False),
    ]


@pytest.mark.usefixtures("fake")
def test_a_missed_target_is_marked_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["probe"]) == 0
    shown = capsys.readouterr().out
    (speed,) = [line for line in shown.splitlines() if "speed" in line]
    assert "missed" in speed
    assert ">= 3" in speed
    assert "[a] µ" in speed  # brackets are text, not markup


def test_an_unknown_name_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["nonsense"])
    assert stopped.value.code == 2
    assert ", ".join(command.BENCHMARKS) in capsys.readouterr().err
