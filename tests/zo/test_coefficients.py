"""What directions are multiplied by in a step."""

from __future__ import annotations

import numpy as np

from sfl_flower.zo import step_coefficients


def test_coefficients_by_hand() -> None:
    found = step_coefficients(np.array([1.0, -2.0], np.float32), 0.25)  # v / (P mu)
    assert (found.tolist(), str(found.dtype)) == ([2.0, -4.0], "float32")
    clipped = step_coefficients(np.array([3.0, -4.0], np.float32), 0.5, 50.0**0.5 / 2)
    np.testing.assert_allclose(clipped, [1.5, -2.0], rtol=1e-6)  # half of v / (P mu)


def test_scalars_are_rounded_to_float32_first_as_they_travel() -> None:
    exact = np.array([0.1, 1 / 3])
    assert np.array_equal(step_coefficients(exact, 0.7), step_coefficients(exact.astype("f4"), 0.7))


def test_what_is_too_large_for_float32_is_infinite_and_warns_of_nothing() -> None:
    assert not np.isfinite(step_coefficients(np.array([1e38], np.float32), 1e-3)).any()
