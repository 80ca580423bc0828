"""The benchmark of few forwards chooses rates on held back images, and prints what they give."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import learn
from benchmarks.learn_beds import BEDS

TEST = {
    "frozen": 0.70, "all_p4": 0.71, "subspace_p4": 0.80, "subspace_p1": 0.78,
    "all_p4_walk": 0.705, "subspace_p4_walk": 0.76, "subspace_p1_walk": 0.75,
    "channel_p4": 0.81, "channel_p1": 0.79, "channel_p1_walk": 0.74,
    "first_order": 0.85, "first_order_same": 0.82,
}  # fmt: skip


FASHION = BEDS["fashion"]


def test_the_gap_is_that_of_the_rates_which_were_chosen(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for label, row in FASHION.rows.items():
            for number, rates in enumerate(row.options()):
                # The middle rate is the best on held back images, the last on the test images.
                held = 0.5 - abs(number - 1) / 10
                metrics = {
                    "accuracy": TEST[label] + max(0, number - 1),
                    "validation_accuracy": held,
                    "loss": 0.25,
                    "client_flops": 3e6,
                }
                for rounds in (FASHION.tuning, FASHION.rounds):
                    key = learn.job(FASHION, label, rates, 0, rounds).key()
                    file.write(json.dumps({"run": key, "metrics": metrics}) + "\n")
    found = figures("--learn-beds", "fashion", "--learn-seeds", "1", "--learn-out", str(path))
    assert found["flops_fashion_channel_p4"] == 3e6
    assert found["fashion_gap_p4"] == pytest.approx((0.81 - 0.70) / (0.85 - 0.70))
    assert found["fashion_gap_p4_same"] == pytest.approx((0.81 - 0.70) / (0.82 - 0.70))
    assert found["fashion_gap_p1"] == pytest.approx((0.79 - 0.70) / (0.85 - 0.70))
    assert found["fashion_learned_p1"] == pytest.approx((0.79 - 0.75) / (0.82 - 0.75))
    rows = ["--learn-rows", "frozen,channel_p4,first_order"]
    some = figures("--learn-beds", "fashion", *rows, "--learn-seeds", "1", "--learn-out", str(path))
    assert {name for name in some if "gap" in name} == {"fashion_gap_p4"}


def figures(*given: str) -> dict[str, float]:
    parser = argparse.ArgumentParser()
    learn.add_arguments(parser.add_argument_group("learn"))
    return {figure.name: figure.value for figure in learn.run(parser.parse_args(given))}


@pytest.mark.parametrize("name", BEDS)
def test_a_bed_holds_back_samples_and_names_rows_that_it_has(name: str) -> None:
    bed = BEDS[name]
    assert bed.shared["validation"] == 0.1
    for gap in bed.gaps.values():
        assert {gap.row, gap.control, gap.first} <= bed.rows.keys()


@pytest.mark.parametrize("name", BEDS)
def test_a_walk_differs_from_its_row_in_nothing_else(name: str) -> None:
    rows = BEDS[name].rows
    for label, row in rows.items():
        if label.endswith("_walk"):
            twin = rows[label.removesuffix("_walk")]
            assert row.settings == {**twin.settings, "walk": True}
            assert (row.rates, row.server_rates) == (twin.rates, twin.server_rates)


@pytest.mark.parametrize("name", BEDS)
def test_no_row_that_claims_runs_more_than_five_forwards_a_sample(name: str) -> None:
    for row in BEDS[name].rows.values():
        if row.method in ("ho_sfl", "heron"):
            assert 1 + row.settings["probes"] + ("guide" in row.settings) <= 5


def test_operations_are_those_of_short_runs_of_the_whole_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And memory: 7 of the mini-batch over 14, the less of one sample and two at a time."""
    peaks = {33: 7, 1: 15, 2: 14}
    monkeypatch.setattr(learn, "peak", lambda job, size: peaks[size])
    bed, path = BEDS["efficientnet"], tmp_path / "runs.jsonl"
    flops = {"channel_p4": 20.0, "first_order": 80.0, "first_order_same": 40.0}
    with path.open("w", encoding="utf-8") as file:
        for label, found in flops.items():
            runs = [learn.job(bed, label, rates, 0, 100) for rates in bed.rows[label].options()]
            runs += [learn.counting_job(bed, label, bed.rows[label].options()[0])]
            for run in runs:
                # All rates are level: the first one is taken.
                metrics = {
                    "accuracy": 0.5,
                    "loss": 0.5,
                    "validation_accuracy": 0.5,
                    "client_flops": found,
                }
                file.write(json.dumps({"run": run.key(), "metrics": metrics}) + "\n")
    rows = ["--learn-beds", "efficientnet", "--learn-rows", ",".join(flops)]
    printed = figures(*rows, "--learn-seeds", "1", "--learn-out", str(path))
    assert printed["flops_vs_backprop"] == pytest.approx(20 / 80)
    assert printed["flops_vs_backprop_same"] == pytest.approx(20 / 40)
    assert printed["memory_vs_backprop"] == 0.5
    counted = learn.counting_job(bed, "channel_p4", {}).options
    assert "task.behind" not in counted and counted["task.trained"] == "subspace:16:last.*"
