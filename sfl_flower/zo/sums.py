"""Sums over all parameters to the same bits on every machine: float64, in one fixed order."""

from __future__ import annotations

import numpy as np

from sfl_flower.zo.law import F32

__all__ = ["fixed_sum"]

_BLOCK = 1 << 16


def fixed_sum(values: F32, squared: bool = False) -> float:
    """Return the sum of a vector, or of its squares.

    A block of 65536 elements, the last one filled up with zeros, is folded: its second half is
    added to its first, element by element, until one number is left.  The numbers of the blocks are
    added from first to last.  Nothing but single additions is asked of a machine, whose own sums
    differ in their order.

    Parameters
    ----------
    values : numpy.ndarray
        float32, one dimension.
    squared : bool
        Whether each element is squared first (exactly, in float64).
    """
    total = 0.0
    for low in range(0, len(values), _BLOCK):
        part = values[low : low + _BLOCK]
        folded = np.zeros(1 << max(0, len(part) - 1).bit_length(), dtype=np.float64)
        folded[: len(part)] = part
        if squared:
            np.multiply(folded, folded, out=folded)
        while len(folded) > 1:
            half = len(folded) // 2
            folded = np.add(folded[:half], folded[half:])
        total += float(folded[0])
    return total
