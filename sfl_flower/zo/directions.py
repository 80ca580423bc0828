"""Directions ``u``: pure functions of (run, key, law, size), readable from any element on.

The format is specified in ``docs/directions.md`` and held by golden vectors in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.errors import ConfigError
from sfl_flower.zo.gaussian import normals
from sfl_flower.zo.keys import Key, check_law, philox_key
from sfl_flower.zo.signs import SignWriter, expand_torch
from sfl_flower.zo.words import WordStream

__all__ = ["BLOCK", "Direction"]

BLOCK = 65536
"""Elements worked on at a time: the float32 block and its indices stay in the L2 cache."""

F32 = NDArray[np.float32]
_FIXED_POINT = 2.0**30
_DEVICE_BLOCK = 1 << 22


class Direction:
    """One random direction over the flat vector of zeroth-order-trained parameters.

    Every law has ``E[u uᵀ] = I``, so the estimator scale of the papers is 1 for each of them
    (``methods.md`` 0.3: the sphere here has radius ``√d``).

    Parameters
    ----------
    run_key
        16 bytes from `sfl_flower.zo.run_key`.
    key
        Round, step, stream and probe.
    size
        Number of elements ``d``, ≥ 1.
    law
        ``"rademacher"`` (±1), ``"gaussian"`` or ``"sphere"``.

    Raises
    ------
    ConfigError
        If an argument is outside its legal range.

    Notes
    -----
    The words of a Rademacher direction (``d / 8`` bytes) are drawn at first use and kept, so a
    step never draws twice. Gaussian and sphere values are made again at each use: their words
    would weigh as much as the parameters.
    """

    def __init__(self, run_key: bytes, key: Key, size: int, law: str = "rademacher") -> None:
        if type(size) is not int or size < 1:
            raise ConfigError(f"A direction has size {size!r}; it needs at least 1 element.")
        check_law(law)
        self.key, self.size, self.law = key, size, law
        self._philox_key = philox_key(run_key, key, law)
        self._sign_bytes: NDArray[np.uint8] | None = None
        self._radius_scale: float | None = None

    def __repr__(self) -> str:
        return f"Direction({self.key}, size={self.size}, law={self.law!r})"

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return elements ``start .. stop`` of ``u``: float32, on the CPU."""
        stop = self.size if stop is None else stop
        self._check_range(start, stop)
        out = np.empty(stop - start, dtype=np.float32)
        for low, high in _blocks(start, stop, BLOCK):
            self.write(out[low - start : high - start], low, np.float32(1.0))
        return torch.from_numpy(out)

    def add_to(self, out: Tensor, base: Tensor, scale: float, start: int = 0) -> None:
        """Write ``out = base + scale * u[start : start + len(out)]``.

        Parameters
        ----------
        out, base
            Contiguous float32 vectors of one length on one device; ``out`` may be ``base``.
        scale
            Rounded to float32 first; product and sum are then two float32 operations.
        start
            Element of the direction that meets ``base[0]``.

        Raises
        ------
        ConfigError
            If the tensors do not match, or the scale is not finite in float32.
        """
        with np.errstate(over="ignore"):
            constant = np.float32(scale)
        if not np.isfinite(constant):
            raise ConfigError(f"Direction scale {scale!r} is not finite in float32.")
        _check_pair(out, base)
        self._check_range(start, start + out.numel())
        if out.device.type == "cpu":
            self._add_numpy(out.detach().numpy(), base.detach().numpy(), constant, start)
        else:
            self._add_device(out.detach(), base.detach(), constant, start)

    def _add_numpy(self, out: F32, base: F32, constant: np.float32, start: int) -> None:
        scratch = np.empty(min(BLOCK, len(out)), dtype=np.float32)
        signs = SignWriter(constant, np.empty(BLOCK // 8, dtype=np.intp))
        for low, high in _blocks(start, start + len(out), BLOCK):
            step = scratch[: high - low]
            if self.law == "rademacher":
                signs.write(self._packed(low, high), step, low % 8)
            else:
                self.write(step, low, constant)
            here = slice(low - start, high - start)
            np.add(base[here], step, out=out[here])

    def _add_device(self, out: Tensor, base: Tensor, constant: np.float32, start: int) -> None:
        """Do the same on another device, to the same bits: the words move, not the values."""
        for low, high in _blocks(start, start + out.numel(), _DEVICE_BLOCK):
            here = slice(low - start, high - start)
            if self.law == "rademacher":
                packed = torch.from_numpy(self._packed(low, high)).to(out.device)
                step = expand_torch(packed, float(constant))[low % 8 :][: high - low]
            else:
                step = self.values(low, high).to(out.device) * float(constant)
            torch.add(base[here], step, out=out[here])

    def _packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes that hold the signs of elements ``start .. stop``, drawn once."""
        if self._sign_bytes is None:
            self._sign_bytes = WordStream(self._philox_key).read_bytes(-(-self.size // 64))
        return self._sign_bytes[start // 8 : -(-stop // 8)]

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        """Write ``constant * u[start : start + len(out)]`` into a numpy vector."""
        if self.law == "rademacher":
            packed = self._packed(start, start + len(out))
            index = np.empty(len(packed), dtype=np.intp)
            SignWriter(constant, index).write(packed, out, start % 8)
            return
        stream = WordStream(self._philox_key, start // 2)
        words = stream.read_bytes((start % 2 + len(out) + 1) // 2).view("<u4")
        values = normals(words[start % 2 :][: len(out)].astype(np.uint32, copy=False))
        if self.law == "sphere":
            scaled = np.multiply(values.astype(np.float64), self._sphere_scale())
            values = scaled.astype(np.float32)
        np.multiply(values, constant, out=out)

    def _sphere_scale(self) -> float:
        """``√(d / ‖x‖²)`` with the squared norm summed exactly, in units of ``2**-30``."""
        if self._radius_scale is None:
            total, stream = 0, WordStream(self._philox_key)
            for low, high in _blocks(0, self.size, BLOCK):
                words = stream.read_bytes((high - low + 1) // 2).view("<u4")[: high - low]
                x = normals(words).astype(np.float64)
                fixed = np.rint(np.multiply(np.multiply(x, x), _FIXED_POINT))
                total += int(fixed.astype(np.int64).sum())
            self._radius_scale = math.sqrt((self.size << 30) / max(total, 1))
        return self._radius_scale

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ConfigError(
                f"Elements {start}..{stop} are not inside a direction of {self.size} elements."
            )


def _blocks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``start .. stop`` at multiples of ``size`` (an even multiple of 8)."""
    low = start
    while low < stop:
        high = min(stop, (low // size + 1) * size)
        yield low, high
        low = high


def _check_pair(out: Tensor, base: Tensor) -> None:
    for name, tensor in (("out", out), ("base", base)):
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ConfigError(
                f"{name} must be a contiguous float32 vector; it is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}."
            )
    if out.shape != base.shape or out.device != base.device:
        raise ConfigError(
            f"out has {out.numel()} elements on {out.device}, base {base.numel()} on "
            f"{base.device}; both must be equal."
        )
