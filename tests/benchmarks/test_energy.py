"""The benchmark of energy shares: a figure for each choice, and one for the case."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace

import pytest

from benchmarks import energy
from sfl_flower.tasks import load_task


def test_each_choice_and_the_case_have_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: Mapping[str, energy.Case] = {
        "digits": energy.Case("digits", {"train_size": 200}, "subspace:auto:0.5:0.9", 0.3)
    }
    monkeypatch.setattr(energy, "CASES", cases)
    task = load_task("digits")
    task = replace(task, public=task.test)
    monkeypatch.setattr(energy, "load_task", lambda name, **options: task)
    parser = argparse.ArgumentParser()
    energy.add_arguments(parser.add_argument_group("energy"))
    argv = ["--energy-cases", "digits", "--energy-choices", "all subspace:2", "--energy-batches=2"]
    found = {figure.name: figure for figure in energy.run(parser.parse_args(argv))}
    assert found["energy_share_digits_all"].value == pytest.approx(1.0)
    assert 0 < found["energy_share_digits_subspace_2"].value < 1
    assert found["energy_share_digits"].target == 0.3
    assert found["energy_share_digits"].value > 0.3
    assert "520 parameters" in found["energy_share_digits_all"].setting
