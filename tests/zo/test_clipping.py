"""Gradient clipping of estimates that exist as scalars."""

from __future__ import annotations

import numpy as np
import pytest

from sfl_flower.zo import clip_scalars


def test_scalars_by_hand() -> None:
    v = np.array([0.3, -0.4], np.float32)  # root mean square sqrt(0.125) = 0.35355
    assert clip_scalars(v, 0.1, 0.0) == pytest.approx([0.3, -0.4])
    assert clip_scalars(v, 0.1, 4.0) == pytest.approx([0.3, -0.4])  # the norm is 3.5355
    half = clip_scalars(v, 0.1, 3.5355339 / 2)
    assert half == pytest.approx([0.15, -0.2]) and half.dtype == np.float64


def test_the_norm_is_that_of_the_gradient() -> None:
    rng = np.random.default_rng(0)
    g = rng.standard_normal(50)
    signs = rng.integers(0, 2, (20_000, 50)) * 2 - 1
    v = (signs @ g * 1e-3).astype(np.float32)
    clipped = clip_scalars(v, 1e-3, 1.0)
    assert clipped[0] / v[0] == pytest.approx(1 / np.linalg.norm(g), rel=0.02)


def test_the_order_of_scalars_does_not_change_their_bits() -> None:
    v = np.random.default_rng(1).standard_normal(257).astype(np.float32)
    assert np.array_equal(clip_scalars(v, 1e-3, 5.0)[::-1], clip_scalars(v[::-1], 1e-3, 5.0))
