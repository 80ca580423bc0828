"""Numbers as floats of 4 or 2 bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sfl_flower.errors import WireError
from sfl_flower.wire.encodings.encoding import NAMES

__all__ = ["BFloat16", "Float16", "Float32", "bfloat16_bits", "from_bfloat16"]

_LARGEST = float(np.finfo(np.float16).max)


class Float32:
    """4 bytes a value, nothing lost; see `Format`."""

    name: ClassVar[str] = "float32"
    parts: ClassVar[Mapping[str, str]] = {"": "float32"}
    packed: ClassVar[bool] = False

    def encode(self, rows: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return the values themselves."""
        return {"": rows}

    def decode(self, parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
        """Return the values themselves."""
        return whole(parts, count, size)


class Float16:
    """2 bytes a value, 11 significant bits, at most ±65504; see `Format`."""

    name: ClassVar[str] = "float16"
    parts: ClassVar[Mapping[str, str]] = {"": "float16"}
    packed: ClassVar[bool] = False

    def encode(self, rows: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return the values, each rounded to the nearest float16.

        Raises
        ------
        WireError
            If a value is beyond ±65504.
        """
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        if not np.isfinite(half).all():
            largest = float(np.abs(rows).max())
            raise WireError(
                f"The {NAMES[what]} hold a value of size {largest:.6g}, and float16 ends at "
                f"{_LARGEST:g}; set {what}=bfloat16 or float32, or lower the learning rates if the "
                "values grow."
            )
        return {"": half}

    def decode(self, parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
        """Return the values as float32, exactly."""
        return whole(parts, count, size).astype(np.float32)


class BFloat16:
    """2 bytes a value, 8 significant bits, the range of float32; see `Format`.

    The bits travel as uint16, for numpy has no such dtype.
    """

    name: ClassVar[str] = "bfloat16"
    parts: ClassVar[Mapping[str, str]] = {"": "uint16"}
    packed: ClassVar[bool] = False

    def encode(self, rows: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return the bits of the values, each rounded to the nearest, ties to even.

        Raises
        ------
        WireError
            If a value is not finite, or beyond the largest bfloat16, 3.39e38.
        """
        bits = np.ascontiguousarray(rows).view(np.uint32)
        half = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
        if not np.isfinite(from_bfloat16(half)).all() or not np.isfinite(rows).all():
            raise WireError(
                f"The {NAMES[what]} hold a value that is not finite or beyond 3.39e38, where "
                "bfloat16 ends; lower the learning rates."
            )
        return {"": half}

    def decode(self, parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
        """Return the values as float32, exactly.

        Raises
        ------
        WireError
            If one is not finite.
        """
        found = from_bfloat16(whole(parts, count, size))
        if not np.isfinite(found).all():
            raise WireError("An array in the encoding bfloat16 holds a value that is not finite.")
        return found


def whole(parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
    """Return the numbers' array, which has to be [count, size] or hold as many.

    Raises
    ------
    WireError
        If it holds more or fewer.
    """
    if parts[""].size != count * size:
        raise WireError(
            f"An encoded array holds {parts[''].size} numbers for {count} rows of {size}."
        )
    return parts[""].reshape(count, size)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of the smallest bfloat16 that is not below each value, uint16.

    Parameters
    ----------
    values : numpy.ndarray
        float32, not negative, at most half of the largest float32.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of bits of bfloat16, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
