from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from sfl_flower.zo.gaussian import log, normal_quantile, normals

NORMAL = NormalDist()


def test_log_agrees_with_the_library_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.geomspace(1e-10, 1.0, 20_001), np.linspace(0.4, 1.0, 20_001)])
    expected = np.array([math.log(value) for value in x])
    assert np.all(np.abs(log(x) - expected) <= 2 * np.spacing(np.abs(expected)))


def test_quantile_agrees_with_the_standard_library() -> None:
    # Both sides of each boundary between the approximations, and the tails of 32-bit words.
    p = np.concatenate(
        [
            np.linspace(1e-6, 1 - 1e-6, 4001),
            np.geomspace(2.0**-33, 0.1, 1001),
            np.array([0.075, np.nextafter(0.075, 0), 0.925, np.nextafter(0.925, 1), 0.5]),
        ]
    )
    expected = [NORMAL.inv_cdf(float(value)) for value in p]
    np.testing.assert_allclose(normal_quantile(p), expected, rtol=0, atol=4e-15)


def test_known_words() -> None:
    words = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    low, before, after, high = normals(words).tolist()
    assert high == -low == pytest.approx(NORMAL.inv_cdf(1 - 2.0**-33), rel=1e-7)
    assert after == -before == pytest.approx(2.0**-33 * math.sqrt(2 * math.pi), rel=1e-6)


def test_moments_and_quantiles_of_evenly_spread_words() -> None:
    words = np.arange(2**11, 2**32, 2**12, dtype=np.uint64).astype(np.uint32)
    x = normals(words).astype(np.float64)
    assert abs(x.mean()) < 1e-7
    assert x.var() == pytest.approx(1.0, abs=2e-5)
    assert (x**4).mean() == pytest.approx(3.0, abs=1e-3)
    assert np.all(np.diff(x) >= 0)
    for share in (0.01, 0.25, 0.9, 0.999):
        assert x[int(share * len(x))] == pytest.approx(NORMAL.inv_cdf(share), abs=1e-4)


def test_bits_do_not_depend_on_how_many_are_made_at_once() -> None:
    words = np.arange(0, 2**32, 9_999_991, dtype=np.uint64).astype(np.uint32)
    one_by_one = np.concatenate([normals(words[i : i + 1]) for i in range(len(words))])
    assert normals(words).tobytes() == one_by_one.tobytes()
