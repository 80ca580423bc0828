from __future__ import annotations

import numpy as np
import pytest

from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.privacy.secure_numbers import LARGEST_SUM, from_fixed, largest, step_bits, to_fixed


def test_numbers_by_hand() -> None:
    values = np.array([1.0, -0.5, 0.25, 0.124, 0.126])
    assert to_fixed(values, 2, 1.0).tolist() == [4, -2, 1, 0, 1]
    assert from_fixed(np.array([4, -2, 1, 0, 1]), 2).tolist() == [1.0, -0.5, 0.25, 0.0, 0.25]


@pytest.mark.parametrize(
    ("bound", "clients", "weight"), [(4.0, 100, 1), (1e6, 100, 1), (1.0, 3, 33), (0.03, 7, 640)]
)
def test_so_many_bits_that_no_sum_is_too_large(bound: float, clients: int, weight: int) -> None:
    bits = step_bits(bound, clients, weight)
    most = clients * weight * int(to_fixed(np.array([bound]), bits, bound)[0])
    assert LARGEST_SUM / 8 < most <= LARGEST_SUM


def test_the_bound_is_the_norm_that_scalars_are_clipped_to_or_their_own_limit() -> None:
    assert largest(1e6, 2.0, 16) == 8.0  # one scalar of 16 may be all of the norm
    assert largest(1e6, 0.0, 16) == 1e6


@pytest.mark.parametrize("value", [1.1, -1.1, np.nan, np.inf])
def test_what_is_beyond_the_bound_never_leaves(value: float) -> None:
    with pytest.raises(TrainingError, match="is beyond 1, the most that secure sums hold"):
        to_fixed(np.array([0.0, value]), 8, 1.0)


def test_a_step_that_is_too_coarse_is_refused() -> None:
    with pytest.raises(ConfigError, match="lower scalar_limit, or set clip_norm"):
        step_bits(1e12, 100)
