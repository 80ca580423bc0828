"""The benchmark of few forwards chooses rates on held back images, and prints what they give."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import learn

TEST = {
    "frozen": 0.70, "all_p4": 0.71, "subspace_p4": 0.80, "subspace_p1": 0.78,
    "all_p4_walk": 0.705, "subspace_p4_walk": 0.76, "subspace_p1_walk": 0.75,
    "channel_p4": 0.81, "channel_p1": 0.79, "channel_p1_walk": 0.74,
    "first_order": 0.85, "first_order_same": 0.82,
}  # fmt: skip


def test_the_gap_is_that_of_the_rates_which_were_chosen(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for label, row in learn.ROWS.items():
            for number, rate in enumerate(row.rates or (0.0,)):
                # The middle rate is the best on held back images, the last on the test images.
                held = 0.5 - abs(number - 1) / 10
                metrics = {
                    "accuracy": TEST[label] + max(0, number - 1),
                    "validation_accuracy": held,
                }
                line = {"run": learn.job(label, rate, 0, 2000).key(), "metrics": metrics}
                file.write(json.dumps(line) + "\n")
    parser = argparse.ArgumentParser()
    learn.add_arguments(parser.add_argument_group("learn"))
    given = parser.parse_args(["--learn-seeds", "1", "--learn-out", str(path)])
    found = {figure.name: figure.value for figure in learn.run(given)}
    assert found["fashion_gap_p4"] == pytest.approx((0.81 - 0.70) / (0.85 - 0.70))
    assert found["fashion_gap_p4_same"] == pytest.approx((0.81 - 0.70) / (0.82 - 0.70))
    assert found["fashion_gap_p1"] == pytest.approx((0.79 - 0.70) / (0.85 - 0.70))
    assert found["fashion_learned_p1"] == pytest.approx((0.79 - 0.75) / (0.82 - 0.75))
    assert learn.SHARED["validation"] == 0.1


def test_a_walk_differs_from_its_row_in_nothing_else() -> None:
    for label, row in learn.ROWS.items():
        if label.endswith("_walk"):
            twin = learn.ROWS[label.removesuffix("_walk")]
            assert row.settings == {**twin.settings, "walk": True}
            assert row.rates == twin.rates


def test_no_row_that_claims_runs_more_than_five_forwards_a_sample() -> None:
    for row in learn.ROWS.values():
        if row.method == "ho_sfl":
            assert row.settings["probes"] + 1 <= 5
