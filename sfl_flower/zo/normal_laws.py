"""Gaussian directions, and those on the sphere of radius ``√d``: normal values of the words.

The values are made again at each use: their words would weigh as much as the parameters.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from sfl_flower.zo.gaussian import normals
from sfl_flower.zo.law import F32, Law, Shapes, Values, elements
from sfl_flower.zo.words import WordStream

__all__ = ["Gaussian", "Sphere"]

_BLOCK = 65536
_FIXED_POINT = 2.0**30


class Gaussian(Law):
    """Standard normal elements."""

    name: ClassVar[str] = "gaussian"
    tag: ClassVar[int] = 1

    def values(self, stream_key: int, shapes: Shapes, once: bool) -> Values:
        """Return normal values."""
        return _Normals(stream_key)


class Sphere(Law):
    """Uniform on the sphere of radius ``√d``; the papers' unit sphere takes a factor of ``d``."""

    name: ClassVar[str] = "sphere"
    tag: ClassVar[int] = 2

    def values(self, stream_key: int, shapes: Shapes, once: bool) -> Values:
        """Return normal values that are scaled to the sphere."""
        return _OnSphere(stream_key, elements(shapes))


class _Normals(Values):
    def __init__(self, stream_key: int) -> None:
        self._key = stream_key

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        np.multiply(self._unscaled(start, len(out)), constant, out=out)

    def _unscaled(self, start: int, count: int) -> F32:
        stream = WordStream(self._key, start // 2)
        words = stream.read_bytes((start % 2 + count + 1) // 2).view("<u4")
        return normals(words[start % 2 :][:count].astype(np.uint32, copy=False))


class _OnSphere(_Normals):
    def __init__(self, stream_key: int, size: int) -> None:
        super().__init__(stream_key)
        self._size = size
        self._scale: float | None = None

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        values = self._unscaled(start, len(out)).astype(np.float64)
        np.multiply(np.multiply(values, self._radius()).astype(np.float32), constant, out=out)

    def _radius(self) -> float:
        """``√(d / ‖x‖²)`` with the squared norm summed exactly, in units of ``2**-30``."""
        if self._scale is None:
            total = 0
            for low in range(0, self._size, _BLOCK):
                count = min(_BLOCK, self._size - low)
                x = self._unscaled(low, count).astype(np.float64)
                fixed = np.rint(np.multiply(np.multiply(x, x), _FIXED_POINT))
                total += int(fixed.astype(np.int64).sum())
            self._scale = math.sqrt((self._size << 30) / max(total, 1))
        return self._scale
