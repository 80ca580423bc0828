"""A client's step takes the memory of a forward and, at most, of a layer and the smallest ones."""

from __future__ import annotations

import pytest

from benchmarks import cost

LAYER = 4 * 128 * 128 * 3 * 3
"""Bytes of the largest layer of the half."""


@pytest.mark.flower
@pytest.mark.parametrize(("batch", "most"), [(8, 1.5), (64, cost.MOST)])
def test_a_step_takes_hardly_more_than_a_forward(batch: int, most: float) -> None:
    step, forward = cost.peaks(batch)
    assert forward < step <= most * forward
    # The smallest layers move at once, up to an eighth of the largest together.
    assert step - forward < 1.15 * LAYER
