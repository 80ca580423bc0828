"""Gaussian directions, and those on the sphere of radius ``√d``: normal values of the words.

The values are made again at each use: their words would weigh as much as the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sfl_flower.zo.gaussian import normals
from sfl_flower.zo.law import F32, Law, Shapes, Values, elements
from sfl_flower.zo.words import WordStream

__all__ = ["Gaussian", "Sphere"]

_BLOCK = 65536
_DEVICE_BLOCK = 1 << 20
"""Elements made at a time on a device: float64 values take twice their place, several times."""
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
        return self.together([stream_key], shapes)[0]

    def together(self, stream_keys: Sequence[int], shapes: Shapes) -> list[Values]:
        """Return scaled values; on a device the radii of all are found when the first is read."""
        radii = _Radii(stream_keys, elements(shapes))
        return [_OnSphere(key, radii, number) for number, key in enumerate(stream_keys)]


class _Normals(Values):
    def __init__(self, stream_key: int) -> None:
        self._key = stream_key

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        np.multiply(self._unscaled(start, len(out)), constant, out=out)

    def _unscaled(self, start: int, count: int) -> F32:
        stream = WordStream(self._key, start // 2)
        words = stream.read_bytes((start % 2 + count + 1) // 2).view("<u4")
        return normals(words[start % 2 :][:count].astype(np.uint32, copy=False))

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        out = torch.empty(stop - start, dtype=torch.float32, device=device)
        for low in range(start, stop, _DEVICE_BLOCK):
            high = min(stop, low + _DEVICE_BLOCK)
            here = out[low - start : high - start]
            torch.mul(self._there(device, low, high), float(constant), out=here)
        return out

    def _there(self, device: torch.device, start: int, stop: int) -> Tensor:
        return _unscaled_on(device, self._key, start, stop)


def _unscaled_on(device: torch.device, key: int, start: int, stop: int) -> Tensor:
    """Return normal values of a stream on a device, float32; what `_Normals._unscaled` returns."""
    from sfl_flower.zo.device_normals import normals_on  # a client without a GPU needs neither
    from sfl_flower.zo.device_words import words_on

    first = start // 2
    halves = words_on(device, [key], first, -(-stop // 2) - first)[0].view(torch.int32)
    return normals_on(halves[start % 2 :][: stop - start])


class _OnSphere(_Normals):
    def __init__(self, stream_key: int, radii: _Radii, number: int) -> None:
        super().__init__(stream_key)
        self._radii, self._number = radii, number
        self._scale: float | None = None

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        if self._scale is None:
            self._scale = self._radii.scale(self._squared())
        values = self._unscaled(start, len(out)).astype(np.float64)
        np.multiply(np.multiply(values, self._scale).astype(np.float32), constant, out=out)

    def _squared(self) -> int:
        total = 0
        for low in range(0, self._radii.size, _BLOCK):
            count = min(_BLOCK, self._radii.size - low)
            x = self._unscaled(low, count).astype(np.float64)
            fixed = np.rint(np.multiply(np.multiply(x, x), _FIXED_POINT))
            total += int(fixed.astype(np.int64).sum())
        return total

    def _there(self, device: torch.device, start: int, stop: int) -> Tensor:
        scale = self._radii.on(device)[self._number]
        values = super()._there(device, start, stop).to(torch.float64)
        return values.mul_(scale).to(torch.float32)


class _Radii:
    """``√(d / ‖x‖²)`` of each x, with the squared norm summed exactly, in units of ``2**-30``."""

    def __init__(self, stream_keys: Sequence[int], size: int) -> None:
        self._keys, self.size = stream_keys, size
        self._scales: list[float] = []

    def scale(self, squared: int) -> float:
        """Return the factor for a squared norm."""
        return math.sqrt((self.size << 30) / max(squared, 1))

    def on(self, device: torch.device) -> list[float]:
        """Return the factor of each; the host waits for the device once, for all of them."""
        if not self._scales:
            found = torch.stack([self._squared(device, key) for key in self._keys])
            self._scales = [self.scale(squared) for squared in found.cpu().tolist()]
        return self._scales

    def _squared(self, device: torch.device, key: int) -> Tensor:
        total = torch.zeros((), dtype=torch.int64, device=device)
        for low in range(0, self.size, _DEVICE_BLOCK):
            high = min(self.size, low + _DEVICE_BLOCK)
            x = _unscaled_on(device, key, low, high).to(torch.float64)
            total += (x * x).mul_(_FIXED_POINT).round_().to(torch.int64).sum()
        return total
