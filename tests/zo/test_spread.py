"""Scalars over their own spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfl_flower.errors import ConfigError
from sfl_flower.zo import condition_scalars, step_coefficients
from sfl_flower.zo.spread import spread_scalars


def test_scalars_by_hand() -> None:
    v = np.array([1.0, 2.0, 6.0], np.float32)  # mean 3, Σ (v - 3)² = 14, σ = √7
    np.testing.assert_allclose(spread_scalars(v, 0.5), 0.5 * v.astype(float) / 7**0.5, rtol=1e-15)
    # v / (P σ): neither μ nor the size of the loss is left.
    expected = (v / (3 * 7**0.5)).astype(np.float32)
    for size, unit in ((1.0, 0.5), (8.0, 1e-3), (0.125, 1.0)):
        found = step_coefficients(v * np.float32(size), unit, scale="spread")
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_clipping_comes_after() -> None:
    v = np.array([1.0, 2.0, 6.0], np.float32)
    free = condition_scalars(v, 0.5, 0.0, "spread") / 0.5
    norm = float(np.sqrt(np.mean(free**2)))
    assert norm == pytest.approx((41 / 3 / 7) ** 0.5)
    np.testing.assert_allclose(condition_scalars(v, 0.5, 1.0, "spread") / 0.5, free / norm)
    np.testing.assert_array_equal(condition_scalars(v, 0.5, 2.0, "spread") / 0.5, free)


@pytest.mark.parametrize("v", [[0.0, 0.0], [3.0, 3.0, 3.0]])
def test_equal_scalars_take_no_step(v: list[float]) -> None:
    assert not spread_scalars(np.array(v, np.float32), 1e-3).any()


def test_one_scalar_has_no_spread() -> None:
    with pytest.raises(ConfigError, match="probes of at least 2"):
        spread_scalars(np.array([1.0], np.float32), 1e-3)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40),
    st.permutations(range(40)),
)
def test_the_order_of_probes_does_not_change_their_bits(v: list[float], order: list[int]) -> None:
    scalars = np.array(v, np.float32)
    turned = [index for index in order if index < len(v)]
    found = spread_scalars(scalars, 0.25)
    assert np.array_equal(found[turned], spread_scalars(scalars[turned], 0.25))
    if found.any():
        assert np.std(found, ddof=1) == pytest.approx(0.25, rel=1e-6)
