"""Sums of scaled directions, ``g = Σ c_i u_i``, in float32 and in one fixed order.

The order is part of the format: neighbours are added two by two, two pairs make a group of
four, and the groups are added one after the other; a missing member of the last group is left
out. An element depends on its own terms only, so blocks may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfl_flower.zo.directions import Directions
from sfl_flower.zo.keys import Key
from sfl_flower.zo.law import F32, Product, Values

__all__ = ["GROUP", "SUM_BLOCK", "Gradient", "Workspace"]

GROUP = 4
SUM_BLOCK = 131072
"""Elements per call of `Gradient.write`: fewer calls weigh more than a smaller cache here."""


class Workspace:
    """Buffers that one update after another uses; fresh ones would cost their page faults.

    Parameters
    ----------
    size : int
        Number of parameters; buffers are as long as the smaller of it and `SUM_BLOCK`.
    """

    def __init__(self, size: int) -> None:
        self.block = min(SUM_BLOCK, size)
        self.gradient, self.first, self.second, self.third = np.empty(
            (4, self.block), dtype=np.float32
        )
        self.index = np.empty(-(-self.block // 8), dtype=np.intp)


class Gradient:
    """Writes ``Σ c_i u_i`` from front to back, block by block.

    Parameters
    ----------
    directions : Directions
        Those of the run.
    keys : sequence of Key
        Of the terms.
    coefficients : sequence of float
        As many as keys, at least one; rounded to float32.
    workspace : Workspace
        Made for this size. Its ``gradient`` buffer is left to the caller.
    last : Values, optional
        One more term, the last, with its coefficient in it.
    """

    def __init__(
        self,
        directions: Directions,
        keys: Sequence[Key],
        coefficients: Sequence[float],
        workspace: Workspace,
        last: Values | None = None,
    ) -> None:
        self._terms: list[Product] = directions.terms(keys, coefficients, workspace.index)
        if last is not None:
            self._terms.append(last.times(np.float32(1.0), workspace.index))
        self._workspace = workspace

    def write(self, out: F32, start: int) -> None:
        """Write the next elements of the sum.

        Parameters
        ----------
        out : numpy.ndarray
            float32, of length `SUM_BLOCK`, shorter only for the last block.
        start : int
            Elements written by the calls before.
        """
        self._write_group(self._terms[:GROUP], start, out)
        for first in range(GROUP, len(self._terms), GROUP):
            total = self._workspace.third[: len(out)]
            self._write_group(self._terms[first : first + GROUP], start, total)
            np.add(out, total, out=out)

    def _write_group(self, terms: Sequence[Product], start: int, out: F32) -> None:
        """Write ``(t0 + t1) + (t2 + t3)``, or what there is of it."""
        first, second = self._workspace.first[: len(out)], self._workspace.second[: len(out)]
        terms[0].write(out, start)
        if len(terms) > 1:
            terms[1].write(first, start)
            np.add(out, first, out=out)
        if len(terms) > 2:
            terms[2].write(first, start)
            if len(terms) > 3:
                terms[3].write(second, start)
                np.add(first, second, out=first)
            np.add(out, first, out=out)
