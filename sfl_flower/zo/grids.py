"""The elements of a guide: tensors as rows and columns, each with a factor, and signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfl_flower.zo.law import F32, Shapes, Values, upload
from sfl_flower.zo.signs import PackedSigns, outer, signs_of

__all__ = ["Grid", "OfFactors", "grids_of"]


class Grid(NamedTuple):
    """A tensor as rows and columns, and where it lies.

    Attributes
    ----------
    low, high : int
        Its elements in the flat vector.
    first, middle, last : int
        Factors ``first .. middle`` are those of its rows, ``middle .. last`` those of its columns.
    """

    low: int
    high: int
    first: int
    middle: int
    last: int


def grids_of(shapes: Shapes) -> list[Grid]:
    """Lay tensors out, a row for each index of the first dimension; one of no other is a row."""
    found, low, first = [], 0, 0
    for shape in shapes:
        rows, columns = (
            (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
        )
        middle = first + rows
        found.append(Grid(low, low + rows * columns, first, middle, middle + columns))
        low, first = found[-1].high, found[-1].last
    return found


class OfFactors(Values):
    """Signs times the factors of the row and of the column in which an element lies."""

    def __init__(self, signs: PackedSigns, grids: Sequence[Grid], factors: F32) -> None:
        self._signs, self._grids, self._factors = signs, grids, factors

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        """Write elements from ``start`` on, see `Values.write`."""
        self._signs.write(out, start, np.float32(1.0))
        stop = start + len(out)
        for low, high, first, middle, last in self._grids:
            here = slice(max(low, start) - start, min(high, stop) - start)
            if here.stop <= here.start:
                continue
            rows = np.multiply(self._factors[first:middle], constant)
            at = np.arange(start + here.start - low, start + here.stop - low)
            row, column = np.divmod(at, last - middle)
            size = np.multiply(rows[row], self._factors[middle:last][column])
            np.multiply(out[here], size, out=out[here])

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        """Return the elements on a device; a piece of the guide crosses, not as many numbers."""
        packed = upload(self._signs.packed(start, stop), device)
        signs = signs_of(packed)[start % 8 :][: stop - start]
        factors = upload(self._factors, device)
        for low, high, first, middle, last in self._grids:
            here = slice(max(low, start) - start, min(high, stop) - start)
            if here.start < here.stop:
                rows = factors[first:middle] * float(constant)
                part = start + here.start - low, start + here.stop - low
                signs[here].mul_(outer(rows, factors[middle:last], *part))
        return signs
