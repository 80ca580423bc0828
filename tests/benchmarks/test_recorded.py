"""Figures that were recorded: each has a command that is understood, and a name of its own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import recorded
from benchmarks.__main__ import BENCHMARKS, parse
from benchmarks.figure import Figure


def test_every_recorded_figure_has_a_command_that_is_understood() -> None:
    lines = [json.loads(line) for line in recorded.FILE.read_text().splitlines()]
    assert lines and len({line["name"] for line in lines}) == len(lines)
    for line in lines:
        python, dash, module, *words = shlex.split(line["command"])
        assert [python, dash, module] == ["python", "-m", "benchmarks"]
        assert set(parse(words).benchmarks) <= set(BENCHMARKS) - {"recorded"}
    figures = list(recorded.run(parse(["recorded"]).args))
    assert [figure.name for figure in figures] == [line["name"] for line in lines]
    assert [figure.met for figure in figures] == [line["met"] for line in lines]


def test_a_figure_takes_the_place_of_the_older_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "FILE", tmp_path / "figures.jsonl")
    words = [
        "probe",
        "--json",
        "--probe-out",
        "/somewhere/of/mine",
        "--probe-size",
        "7",
        "--record",
    ]
    for value in (1.0, 2.0):
        recorded.record(Figure("first", value, "s", 1.5), words)
        recorded.record(Figure("second", float("inf"), "s", 3.0, lower_is_better=True), words)
        recorded.record(Figure("third", float("nan"), "s", 3.0), words)
    first, second, third = recorded.run(parse(["recorded"]).args)
    assert third.met is False
    with pytest.raises(SystemExit):
        parse(["recorded", "--record"])
    assert (first.value, first.met, second.value, second.met) == (2.0, True, float("inf"), False)
    assert first.setting == "recorded, `python -m benchmarks probe --probe-size 7`: "


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--official-ho_sfl", "/mine"], "--official-ho_sfl PATH"),
        (["--official-ho_sfl=/mine"], "--official-ho_sfl=PATH"),
        (["--trust-fuzz-python", "../own/bin/python"], "--trust-fuzz-python PATH"),
        (["--language-tasks", "org/name"], "--language-tasks org/name"),
        (["--language-tasks=org/name,1/2"], "--language-tasks=org/name,1/2"),
        (["--official-ho_sfl", "~/mine"], "--official-ho_sfl PATH"),
        (["--official-ho_sfl", "my/folder"], "--official-ho_sfl PATH"),
        (["--learn-out=", "--json"], ""),
        (["--learn-out", "/mine/runs.jsonl", "--record"], ""),
    ],
)
def test_a_command_says_that_a_place_is_given_and_not_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setattr(recorded, "FILE", tmp_path / "figures.jsonl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "folder").mkdir(parents=True)
    recorded.record(Figure("first", 1.0, "ratio"), ["official", *words, "--official-probes", "5"])
    (line,) = recorded.FILE.read_text().splitlines()
    expected = ["python -m benchmarks official", told, "--official-probes 5"]
    assert json.loads(line)["command"] == " ".join(filter(None, expected))
