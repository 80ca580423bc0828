"""The language benchmark trains, compares and holds HO-SFL against first order."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import language
from benchmarks.figure import Figure
from sfl_flower.errors import ConfigError
from tests.tasks.language import checkpoint, write

SENTENCES = [("the film was great", 1), ("a dull plot", 0), ("it was not bad and not dull", 1)]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setenv("SFL_DATA_DIR", str(tmp_path))
    for name in ("sst2_train", "sst2_dev"):
        write(tmp_path / f"{name}.csv.gz", ("sentence", "label"), SENTENCES * 4)
    small = {
        "task.model": checkpoint(tmp_path / "bert", "bert"), "task.train_size": 12,
        "task.max_length": 8, "clients": 2, "sampled": 2, "batch_size": 2, "eval_every": 1,
    }  # fmt: skip
    monkeypatch.setattr(language, "SHARED", {**language.SHARED, **small})
    parser = argparse.ArgumentParser()
    language.add_arguments(parser.add_argument_group("language"))
    given = "--language-samples 8 --language-seeds 2 --language-workers 1 --language-methods ho_sfl"
    return parser.parse_args([*given.split(), "--language-out", str(tmp_path / "out")])


def by_name(figures: Iterator[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_the_figures_are_those_of_the_comparison(arguments: argparse.Namespace) -> None:
    found = by_name(language.run(arguments))
    assert list(found) == [
        "sst2_frozen_batch",
        "sst2_frozen_round",
        "sst2_first_order",
        "sst2_ho_sfl",
        "sst2_ho_sfl_minus_first_order",
    ]
    first, ours = found["sst2_first_order"], found["sst2_ho_sfl"]
    difference = found["sst2_ho_sfl_minus_first_order"]
    assert difference.value == ours.value - first.value
    assert (first.target, difference.target) == (0.85, -0.01)
    control = max(found["sst2_frozen_batch"].value, found["sst2_frozen_round"].value)
    assert f"{control:.4f}" in difference.setting
    assert "over the higher of the frozen client and its walk" in ours.setting
    assert "2 seeds, standard deviation" in ours.setting
    assert (arguments.language_out / "table.md").exists()


def test_complete_runs_are_not_trained_again(arguments: argparse.Namespace) -> None:
    first = by_name(language.run(arguments))
    runs = sorted(arguments.language_out.rglob("history.jsonl"))
    times = [run.stat().st_mtime_ns for run in runs]
    assert by_name(language.run(arguments)) == first
    assert times == [run.stat().st_mtime_ns for run in runs]


def test_a_method_without_settings_is_refused(arguments: argparse.Namespace) -> None:
    arguments.language_methods = "ho_sfl,fedavg"
    with pytest.raises(ConfigError, match="--language-methods"):
        next(language.run(arguments))
