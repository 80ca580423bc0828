"""Sums that no sample moves by more than a bound, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sfl_flower.privacy.bounded import bounded_sum, gaussian

EACH = np.array([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]])  # of norms 5, 0.5 and 0


def test_each_sample_is_scaled_to_the_norm_as_one_vector_and_then_summed() -> None:
    assert bounded_sum(EACH, 1.0) == pytest.approx([0.6 + 0.3, 0.8 - 0.4], abs=1e-15)
    assert bounded_sum(EACH, 5.0).tolist() == [3.3, 3.6]
    assert bounded_sum(EACH[:1], 2.5).tolist() == [1.5, 2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_counts_as_nothing(bad: float) -> None:
    with_bad = np.vstack([EACH, [bad, 1.0]])
    assert bounded_sum(with_bad, 1.0).tolist() == bounded_sum(EACH, 1.0).tolist()


def test_a_sample_moves_the_sum_by_no_more_than_the_norm_however_large_it_is() -> None:
    for size in (1e-300, 1.0, 1e200, 1e308):
        moved = bounded_sum(np.vstack([EACH, [size, -size]]), 2.0) - bounded_sum(EACH, 2.0)
        assert np.linalg.norm(moved) <= 2.0 * (1 + 1e-15)


def test_noise_is_independent_of_the_stated_deviation() -> None:
    """A quarter of a million draws: the variance is known to 0.3 percent, five deviations."""
    generator = np.random.default_rng(0)
    values = gaussian(np.full((500, 500), 7.0), 0.5, generator)
    assert values.mean() == pytest.approx(7.0, abs=5 * 0.5 / 500)
    assert values.var() == pytest.approx(0.25, rel=5 * (2**0.5) / 500)
    assert abs(np.corrcoef(values[0], values[1])[0, 1]) < 5 / 500**0.5


def test_every_number_may_have_a_deviation_of_its_own() -> None:
    drawn = np.random.default_rng(3).standard_normal((2, 1, 2))
    deviations = np.array([1.0, 0.0])[:, None, None]
    found = gaussian(np.zeros((2, 1, 2)), deviations, np.random.default_rng(3))
    assert found.tolist() == [drawn[0].tolist(), [[0.0, 0.0]]]
