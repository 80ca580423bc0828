"""Sums of scaled directions, ``g = Σ c_i u_i``, in float32 and in one fixed order.

The order is part of the format: neighbours are added two by two, two pairs make a group of
four, and the groups are added one after the other; a missing member of the last group is left
out. An element depends on its own terms only, so blocks may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sfl_flower.zo.directions import Direction
from sfl_flower.zo.keys import Key, philox_key
from sfl_flower.zo.signs import SignWriter
from sfl_flower.zo.words import WordStream

__all__ = ["GROUP", "SUM_BLOCK", "Gradient", "Workspace"]

GROUP = 4
SUM_BLOCK = 131072
"""Elements per call of `Gradient.write`: fewer calls weigh more than a smaller cache here."""

F32 = NDArray[np.float32]


class Workspace:
    """Buffers that one update after another uses; fresh ones would cost their page faults.

    Parameters
    ----------
    size
        Number of parameters; buffers are as long as the smaller of it and `SUM_BLOCK`.
    """

    def __init__(self, size: int) -> None:
        self.block = min(SUM_BLOCK, size)
        self.gradient, self.first, self.second, self.third = np.empty(
            (4, self.block), dtype=np.float32
        )
        self.index = np.empty(-(-self.block // 8), dtype=np.intp)


class _Term(Protocol):
    def write(self, out: F32, start: int) -> None: ...


class _SignTerm:
    """``c * u`` for a ±1 direction, read once from front to back: no word is kept."""

    def __init__(self, stream_key: int, constant: np.float32, index: NDArray[np.intp]) -> None:
        self._words = WordStream(stream_key)
        self._signs = SignWriter(constant, index)

    def write(self, out: F32, start: int) -> None:
        packed = self._words.read_bytes(-(-len(out) // 64))
        self._signs.write(packed[: -(-len(out) // 8)], out)


class _Product:
    """``c * u`` for the other laws."""

    def __init__(self, direction: Direction, constant: np.float32) -> None:
        self._direction, self._constant = direction, constant

    def write(self, out: F32, start: int) -> None:
        self._direction.write(out, start, self._constant)


class Gradient:
    """Writes ``Σ c_i u_i`` from front to back, block by block.

    Parameters
    ----------
    run_key, keys, size, law
        Of the directions.
    coefficients
        As many as keys, at least one; rounded to float32.
    workspace
        Made for this size. Its ``gradient`` buffer is left to the caller.
    """

    def __init__(
        self,
        run_key: bytes,
        keys: Sequence[Key],
        coefficients: Sequence[float],
        size: int,
        law: str,
        workspace: Workspace,
    ) -> None:
        self._terms: list[_Term] = []
        for key, coefficient in zip(keys, coefficients, strict=True):
            constant = np.float32(coefficient)
            if law == "rademacher":
                stream_key = philox_key(run_key, key, law)
                self._terms.append(_SignTerm(stream_key, constant, workspace.index))
            else:
                self._terms.append(_Product(Direction(run_key, key, size, law), constant))
        self._workspace = workspace

    def write(self, out: F32, start: int) -> None:
        """Write the next elements of the sum.

        Parameters
        ----------
        out
            Of length `SUM_BLOCK`, shorter only for the last block.
        start
            Elements written by the calls before.
        """
        self._write_group(self._terms[:GROUP], start, out)
        for first in range(GROUP, len(self._terms), GROUP):
            total = self._workspace.third[: len(out)]
            self._write_group(self._terms[first : first + GROUP], start, total)
            np.add(out, total, out=out)

    def _write_group(self, terms: Sequence[_Term], start: int, out: F32) -> None:
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
