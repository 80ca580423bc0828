"""Sums of scaled directions, ``g = Σ c_i u_i``, in float32 and in one fixed order.

The order is part of the format: neighbours are added two by two, two pairs make a group of
four, and the groups are added one after the other. A missing member of the last group is left
out. Any element depends on its own directions only, so blocks may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sfl_flower.zo.directions import Direction

__all__ = ["GROUP", "Gradient"]

GROUP = 4
F32 = NDArray[np.float32]


class Gradient:
    """Writes blocks of ``Σ c_i u_i``.

    Parameters
    ----------
    directions, coefficients
        Of equal length, at least one; coefficients are rounded to float32.
    """

    def __init__(self, directions: Sequence[Direction], coefficients: Sequence[float]) -> None:
        self._terms = [
            (direction, np.float32(coefficient))
            for direction, coefficient in zip(directions, coefficients, strict=True)
        ]

    def write(self, out: F32, start: int) -> None:
        """Write elements ``start .. start + len(out)`` of the sum into ``out``."""
        for first in range(0, len(self._terms), GROUP):
            group = self._group(self._terms[first : first + GROUP], len(out), start)
            if first == 0:
                out[:] = group
            else:
                np.add(out, group, out=out)

    def _group(self, terms: list[tuple[Direction, np.float32]], count: int, start: int) -> F32:
        parts = []
        for direction, coefficient in terms:
            part = np.empty(count, dtype=np.float32)
            direction.write(part, start, coefficient)
            parts.append(part)
        pairs = [
            np.add(parts[i], parts[i + 1]) if i + 1 < len(parts) else parts[i]
            for i in range(0, len(parts), 2)
        ]
        return np.add(pairs[0], pairs[1]) if len(pairs) == 2 else pairs[0]
