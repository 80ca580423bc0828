"""Scalars as whole numbers whose sums are exact modulo 2^64.

A scalar d (a derivative) becomes ``q = round(d / step)``; a step is 2^-bits, with as many bits as
leave the sum of all clients' within ±2^47.  Sums beyond that are nobody's: a mask that was not
taken off leaves a number anywhere in 64 bits, of which one in 65 536 lies within.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import ConfigError, TrainingError

__all__ = ["LARGEST_SUM", "check_bound", "from_fixed", "largest", "step_bits", "to_fixed"]

LARGEST_SUM = 2**47
"""Bound of sums."""
LEAST_BITS = 10


def step_bits(bound: float, clients: int, weight: int = 1) -> int:
    """Return so many bits behind the point that sums stay within `LARGEST_SUM`.

    Parameters
    ----------
    bound : float
        Largest |d| of a client.
    clients : int
        Of a round.
    weight : int
        The most that a client counts.

    Raises
    ------
    ConfigError
        Fewer than 10 are left.
    """
    # Each number is rounded by at most a half.
    bits = math.floor(math.log2(LARGEST_SUM / (clients * weight)) - math.log2(max(bound, 1e-300)))
    bits = min(bits - 1, 64)
    if bits < LEAST_BITS:
        raise ConfigError(
            f"secure_sums counts scalars up to {bound:g} in steps of 2^{-bits}, which is too "
            f"coarse (2^-{LEAST_BITS} at most); lower scalar_limit, or set clip_norm."
        )
    return bits


def to_fixed(values: NDArray[np.float64], bits: int, bound: float) -> NDArray[np.int64]:
    """Return numbers as whole multiples of 2^-bits.

    Parameters
    ----------
    values : numpy.ndarray
        float64, any shape.
    bits : int
        Of `step_bits`.
    bound : float
        The largest that is legal.

    Raises
    ------
    TrainingError
        As `check_bound`.
    """
    check_bound(values, bound)
    return np.rint(np.ldexp(values, bits)).astype(np.int64)


def check_bound(values: NDArray[np.float64], bound: float) -> None:
    """Refuse numbers that nobody behind a sum could refuse.

    Raises
    ------
    TrainingError
        One is not finite, or beyond the bound.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= bound * (1 + 1e-9):
        raise TrainingError(
            f"A scalar is beyond {bound:g}, the most that secure sums hold; the client is left out "
            "of the round. Lower client-lr or mu if this repeats."
        )


def from_fixed(total: NDArray[np.int64], bits: int) -> NDArray[np.float64]:
    """Return the numbers that whole multiples of 2^-bits stand for, float64."""
    return np.ldexp(total.astype(np.float64), -bits)


def largest(limit: float, clip_norm: float, probes: int) -> float:
    """Return the largest |d| of a client that keeps to the options of its method.

    Parameters
    ----------
    limit, clip_norm : float
        ``scalar_limit``, and ``clip_norm``, 0 for none.
    probes : int
        P: scalars whose root mean square is at most ``clip_norm``.
    """
    return clip_norm * math.sqrt(probes) if clip_norm else limit
