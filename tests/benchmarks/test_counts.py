"""Forwards, backwards and peaks are those of the real client code."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from benchmarks import forwards, memory
from benchmarks.forwards import CASES, Case, count

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["heron", "fsl_sage_aligned", "splitfed_v2"])
def test_a_step_is_its_closed_form(name: str) -> None:
    case = BY_NAME[name]
    assert count(case) == pytest.approx((case.forwards, case.backwards))


def test_another_probe_is_another_forward() -> None:
    case = BY_NAME["ho_sfl"]
    assert count(replace(case, options={**case.options, "probes": 7})) == (8, 0)


def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BY_NAME["frozen"]
    wrong: Case = replace(right, name="wrong", forwards=2)
    monkeypatch.setattr(forwards, "CASES", (right, wrong))
    *_, share = forwards.run(argparse.Namespace())
    assert share.value == 0.5
    assert "not equal: wrong" in share.setting


def test_peaks_of_a_step() -> None:
    """Behind the first block a forward holds three maps, a backward seven and more."""
    batch = 4
    image = batch * 64 * 32 * 32 * 4
    heron, cse = (memory.measure(method, "layer1.0", batch) for method in ("heron", "cse_fsl"))
    # 75 840 + 655 370 parameters, and the buffers of three norms
    assert heron.parameters == cse.parameters == 4 * (75_840 + 655_370) + 3 * (512 + 8)
    assert heron.slots == 2 * 4 * (75_840 + 655_370)
    assert 3 * image < heron.working < 7 * image < cse.working
    forward, backward = memory.bare("layer1.0", batch)
    assert 3 * image <= forward < heron.working and forward < backward < cse.working
