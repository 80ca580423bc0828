"""What is said of measures."""

from __future__ import annotations

import math

import pytest

from sfl_flower.training.measures import diverged


@pytest.mark.parametrize(
    ("now", "before", "says"),
    [
        (30.0, 2.0, "is 30, 15 times what it was before training (2)"),
        (2.0, 2.0, ""),
        (math.nan, 2.0, "is nan, nan times"),
        (30.0, 0.0, ""),  # not known
        (30.0, math.nan, ""),
        (-0.5, -1.0, ""),  # a loss of one's own
    ],
)
def test_a_loss_has_diverged_beside_that_before_training(
    now: float, before: float, says: str
) -> None:
    found = diverged({"loss": now}, before)
    assert says in found and bool(says) == bool(found)
    assert diverged({}, before) == ""
