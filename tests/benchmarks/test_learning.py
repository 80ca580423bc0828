"""The learning benchmark chooses rates on held back images and holds methods against themselves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import learning

# By label and server rate: accuracy on the test images and on those held back.
SCORES = {
    ("frozen_round", 0.05): (0.70, 0.70), ("frozen_round", 0.1): (0.71, 0.71),
    ("frozen_round", 0.2): (0.90, 0.60), ("frozen_batch", 0.05): (0.75, 0.75),
    ("frozen_batch", 0.1): (0.70, 0.70), ("frozen_batch", 0.2): (0.70, 0.70),
    ("first_order", 0.05): (0.85, 0.85), ("first_order", 0.1): (0.80, 0.80),
    ("first_order", 0.2): (0.80, 0.80), ("ho_sfl", 0.05): (0.83, 0.83),
    ("ho_sfl_rate_0", 0.05): (0.72, 0.72), ("ho_sfl_rate_0", 0.1): (0.70, 0.70),
    ("ho_sfl_rate_0", 0.2): (0.70, 0.70),
}  # fmt: skip
LABELS = "frozen_round,frozen_batch,first_order,ho_sfl,ho_sfl_rate_0"


def test_d3_rates_are_chosen_on_images_that_are_held_back(tmp_path: Path) -> None:
    """0.2 is the control's best rate on the test images alone, which are not asked."""
    path = tmp_path / "runs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for (label, rate), (test, held) in SCORES.items():
            metrics = {"accuracy": test, "validation_accuracy": held}
            key = learning.job(label, rate, 0, 2000).key()
            file.write(json.dumps({"run": key, "metrics": metrics}) + "\n")
    parser = argparse.ArgumentParser()
    learning.add_arguments(parser.add_argument_group("learning"))
    given = ["--learning-seeds", "1", "--learning-methods", LABELS, "--learning-out", str(path)]
    found = {figure.name: figure for figure in learning.run(parser.parse_args(given))}
    assert found["accuracy_frozen_round"].value == 0.71
    # From the higher control, and over itself at a client rate of 0.
    assert found["gap_closed_ho_sfl"].value == pytest.approx((0.83 - 0.75) / (0.85 - 0.75))
    assert found["margin_ho_sfl"].value == pytest.approx(0.83 - 0.72)
    assert learning.SHARED["validation"] == 0.1
