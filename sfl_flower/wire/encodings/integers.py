"""Numbers as integers of 8 or 4 bits, with a scale for every block of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from zlib import crc32

import numpy as np

from sfl_flower.errors import WireError
from sfl_flower.wire.encodings.encoding import check_finite
from sfl_flower.wire.encodings.floats import bfloat16_bits, from_bfloat16

__all__ = ["Int4", "Int8"]

_BLOCK = 256
"""Numbers of a row that have one scale; the last block of a row has what is left."""
_UNSIGNED = np.uint16(0x8000)
"""The sign of a scale says that no number of its block is negative, so that codes need none."""
_SCALES = ".scales"


class Int8:
    """1 byte a value and 2 for each 256 of a row; see `Format`.

    A row is a sample, or a position of a text.  The scale of a block is its largest absolute value
    over 127, or over 255 where nothing in it is negative, rounded up to a bfloat16: zero stays
    zero.  Smashed data are rounded to the nearest code.  Cut gradients are rounded up or down at
    random, so that their sums are right in the mean; what is drawn follows from the values.
    """

    name: ClassVar[str] = "int8"
    parts: ClassVar[Mapping[str, str]] = {"": "int8", _SCALES: "uint16"}
    packed: ClassVar[bool] = False
    _most: ClassVar[int] = 127

    def encode(self, rows: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return codes and scales.

        Raises
        ------
        WireError
            If a value is not finite.
        """
        check_finite(rows, what)
        blocks = _blocks(rows)
        unsigned = blocks.min(axis=2) >= 0
        most = np.where(unsigned, 2 * self._most + 1, self._most).astype(np.float32)
        bits = bfloat16_bits(np.abs(blocks).max(axis=2) / most)
        scales = from_bfloat16(bits)[:, :, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.where(scales > 0, blocks / scales, np.float32(0))
        if what == "gradients":
            codes += _draw(rows, blocks.shape)
            np.floor(codes, out=codes)
        else:
            np.rint(codes, out=codes)
        top = most[:, :, None]
        np.clip(codes, np.where(unsigned[:, :, None], 0, -top), top, out=codes)
        codes = _rows(codes.astype(np.int16).astype(np.int8), rows.shape[1])
        return {"": self._pack(codes), _SCALES: np.where(unsigned, bits | _UNSIGNED, bits)}

    def decode(self, parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
        """Return each code times the scale of its block.

        Raises
        ------
        WireError
            If codes and scales are not those of such rows, or a scale is not finite, or is zero
            with a code that is not.
        """
        per_row = -(-size // _BLOCK)
        bits = parts[_SCALES]
        if bits.size != count * per_row:
            raise WireError(
                f"An array in the encoding {self.name} has {bits.size} scales; {count} rows of "
                f"{size} have {count * per_row}."
            )
        bits = bits.reshape(count, per_row)
        scales = np.abs(from_bfloat16(bits))
        if not np.isfinite(scales).all():
            raise WireError(f"An array in the encoding {self.name} has a scale that is not finite.")
        codes = _blocks(self._unpack(parts[""], count, size))
        if codes[scales == 0].any():
            raise WireError(f"An array in the encoding {self.name} has numbers of a scale of 0.")
        unsigned = (bits & _UNSIGNED > 0)[:, :, None]
        values = np.where(unsigned, codes & (2 * self._most + 1), codes.view(np.int8))
        with np.errstate(over="ignore"):  # whoever reads checks that values are finite
            return _rows(values.astype(np.float32) * scales[:, :, None], size)

    def _pack(self, codes: np.ndarray) -> np.ndarray:
        """Return how int8 codes [n, m] travel; unsigned ones are their lowest bits."""
        return codes

    def _unpack(self, packed: np.ndarray, count: int, size: int) -> np.ndarray:
        """Return the codes, uint8 [n, m], negative ones as their two's complement in 8 bits."""
        if packed.size != count * size:
            raise WireError(
                f"An array in the encoding {self.name} has {packed.size} numbers for {count} rows "
                f"of {size}."
            )
        return packed.reshape(count, size).view(np.uint8)


class Int4(Int8):
    """Half a byte a value and 2 bytes for each 256 of a row, else as `Int8`."""

    name: ClassVar[str] = "int4"
    parts: ClassVar[Mapping[str, str]] = {"": "uint8", _SCALES: "uint16"}
    packed: ClassVar[bool] = True
    _most: ClassVar[int] = 7

    def _pack(self, codes: np.ndarray) -> np.ndarray:
        low = codes.view(np.uint8) & 15
        if low.shape[1] % 2:
            low = np.pad(low, ((0, 0), (0, 1)))
        packed: np.ndarray = low[:, ::2] | (low[:, 1::2] << 4)
        return packed

    def _unpack(self, packed: np.ndarray, count: int, size: int) -> np.ndarray:
        width = -(-size // 2)
        if packed.size != count * width:
            raise WireError(
                f"An array in the encoding {self.name} has {packed.size} bytes of numbers; "
                f"{count} rows of {size} have {count * width}."
            )
        pairs = packed.reshape(count, width)
        nibbles = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(count, 2 * width)[:, :size]
        return (nibbles ^ np.uint8(8)) - np.uint8(8)  # the sign of 4 bits becomes that of 8


def _blocks(rows: np.ndarray) -> np.ndarray:
    """Return rows [n, m] as blocks [n, ⌈m / 256⌉, 256 or m], zeros behind the last."""
    count, size = rows.shape
    per_row, width = -(-size // _BLOCK), min(size, _BLOCK)
    spare = per_row * width - size
    whole = np.pad(rows, ((0, 0), (0, spare))) if spare else np.ascontiguousarray(rows)
    return whole.reshape(count, per_row, width)


def _rows(blocks: np.ndarray, size: int) -> np.ndarray:
    """Return blocks as the rows [n, m] that they are of."""
    count, per_row, width = blocks.shape
    return blocks.reshape(count, per_row * width)[:, :size]


def _draw(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return numbers of [0, 1) that follow from the values alone."""
    seed = crc32(np.ascontiguousarray(rows).data)
    drawn = np.random.Generator(np.random.PCG64(seed)).random(shape, dtype=np.float32)
    return drawn
