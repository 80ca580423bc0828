"""Directions of signs: an own sign for each element, or those of two vectors for each matrix.

Of Rademacher directions element ``8 j + b`` has its sign in bit ``b`` of byte ``j``; bit 1 means
minus. On the CPU a byte selects a row of a table that holds the 8 signed constants: one array
operation writes 8 elements per look-up, and the bits keep their natural order. (Shifting words and
flipping the sign bit takes three operations an element where this takes one.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.zo.law import (
    F32,
    DeviceFactors,
    Factors,
    Law,
    Product,
    Scratch,
    Shapes,
    Values,
    elements,
)
from sfl_flower.zo.words import WordStream

__all__ = ["PackedSigns", "Rademacher", "RankOne", "outer", "signs_of"]

_WORD = 64
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS = np.subtract(np.float32(1.0), np.multiply(np.float32(2.0), _BITS.astype(np.float32)))


class Rademacher(Law):
    """±1 with equal chance; the lowest variance, and one random bit an element."""

    name: ClassVar[str] = "rademacher"
    tag: ClassVar[int] = 0

    def values(self, stream_key: int, shapes: Shapes, once: bool) -> Values:
        """Return the signs; unless read once, the words are drawn at first use and kept."""
        return _Streamed(stream_key) if once else self.together([stream_key], shapes)[0]

    def together(self, stream_keys: Sequence[int], shapes: Shapes) -> list[Values]:
        """Return the signs of several directions, whose words a device draws at once."""
        size = elements(shapes)
        drawn = _Drawn(stream_keys, -(-size // _WORD))
        return [_Kept(key, size, drawn, number) for number, key in enumerate(stream_keys)]


class RankOne(Law):
    """``a bᵀ`` for each matrix or convolution, a and b of signs; plain signs for vectors.

    A tensor of two dimensions or more is a matrix of as many rows as its first dimension says.
    Every element is ±1 and E[u uᵀ] = I, as of Rademacher directions, but a layer's product with u
    is one with b and one with a (`sfl_flower.zo.beside`; the idea is that of EGGROLL, arXiv
    2511.16652).
    """

    name: ClassVar[str] = "rank_one"
    tag: ClassVar[int] = 3

    def values(self, stream_key: int, shapes: Shapes, once: bool) -> Values:
        """Return the products of the factors' signs."""
        return self.together([stream_key], shapes)[0]

    def together(self, stream_keys: Sequence[int], shapes: Shapes) -> list[Values]:
        """Return the products of several directions, whose words a device draws at once."""
        words = -(-sum(map(sum, map(_sizes, shapes))) // _WORD)
        drawn = _Drawn(stream_keys, words)
        return [_Outer(key, shapes, drawn, number) for number, key in enumerate(stream_keys)]


class _Drawn:
    """Words of the directions of a mini-batch on a device, drawn together and kept.

    Parameters
    ----------
    keys : sequence of int
        128-bit Philox key of each direction.
    count : int
        Words of each.
    """

    def __init__(self, keys: Sequence[int], count: int) -> None:
        self._keys, self._count = tuple(keys), count
        self._words: Tensor | None = None

    def of(self, number: int, device: torch.device) -> Tensor:
        """Return the words of one direction as 32-bit halves, the lower first; int32."""
        if self._words is None or self._words.device != device:
            from sfl_flower.zo.device_words import words_on  # a client without a GPU needs none

            self._words = words_on(device, self._keys, 0, self._count)
        return self._words[number].view(torch.int32)


class _Outer(Values):
    """Outer products; factors weigh ``m + n`` numbers a matrix and are kept."""

    def __init__(self, stream_key: int, shapes: Shapes, drawn: _Drawn, number: int) -> None:
        self._key, self._shapes = stream_key, shapes
        self._drawn, self._number = drawn, number
        self._there: list[DeviceFactors] = []

    def factors(self) -> tuple[Factors, ...]:
        return self._factors

    @cached_property
    def _factors(self) -> tuple[Factors, ...]:
        """The factors of each tensor, in order; its bits follow those of the one before."""
        drawn = [_sizes(shape) for shape in self._shapes]
        words = -(-sum(rows + columns for rows, columns in drawn) // _WORD)
        signs = _SIGNS[WordStream(self._key).read_bytes(words)].reshape(-1)
        found, at, start = [], 0, 0
        for rows, columns in drawn:
            a = signs[at : at + rows] if rows else None
            found.append(Factors(start, a, signs[at + rows : at + rows + columns]))
            at, start = at + rows + columns, found[-1].stop
        return tuple(found)

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        stop = start + len(out)
        for part in self._factors:
            low, high = max(start, part.start), min(stop, part.stop)
            if low < high:
                part.write(out[low - start : high - start], low - part.start, constant)

    def factors_on(self, device: torch.device) -> Sequence[DeviceFactors]:
        if not self._there or self._there[0].columns.device != device:
            sizes = [_sizes(shape) for shape in self._shapes]
            signs = _expand(self._drawn.of(self._number, device), 1.0)
            pieces = iter(signs[: sum(map(sum, sizes))].split([n for pair in sizes for n in pair]))
            both = [(next(pieces), next(pieces)) for _ in sizes]
            self._there = [DeviceFactors(a if len(a) else None, b) for a, b in both]
        return self._there

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        found, first = [], 0
        for rows, columns in self.factors_on(device):
            last = first + len(columns) * (1 if rows is None else len(rows))
            low, high = max(start, first) - first, min(stop, last) - first
            if low < high and rows is None:
                found.append(columns[low:high])
            elif low < high and rows is not None:
                found.append(outer(rows, columns, low, high))
            first = last
        return torch.cat(found).mul_(float(constant))


def _sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many signs the rows and the columns of a tensor take; an empty one takes none."""
    size = math.prod(shape)
    return (shape[0], size // shape[0]) if size and len(shape) > 1 else (0, size)


class _Signs(Values):
    """Signs of packed bits."""

    # Nothing but the block itself is written: what a call costs weighs more than a smaller cache.
    block: ClassVar[int] = 262144

    def packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes that hold the signs of elements ``start .. stop``."""
        raise NotImplementedError

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        self.times(constant, np.empty(len(out) // 8 + 2, dtype=np.intp)).write(out, start)

    def times(self, constant: np.float32, scratch: Scratch) -> Product:
        return _SignProduct(self, constant, scratch)


class _Kept(_Signs):
    """Words of a direction that is used again: ``d / 8`` bytes, so a step never draws twice."""

    def __init__(self, stream_key: int, size: int, drawn: _Drawn, number: int) -> None:
        self._key, self._size = stream_key, size
        self._drawn, self._number = drawn, number
        self._bytes: NDArray[np.uint8] | None = None

    def packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        if self._bytes is None:
            self._bytes = WordStream(self._key).read_bytes(-(-self._size // _WORD))
        return self._bytes[start // 8 : -(-stop // 8)]

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        halves = self._drawn.of(self._number, device)[start // 32 : -(-stop // 32)]
        return _expand(halves, float(constant))[start % 32 :][: stop - start]


class _Streamed(_Signs):
    """Words read from front to back: none is kept, and one that was passed is drawn again."""

    def __init__(self, stream_key: int) -> None:
        self._key, self._words, self._at = stream_key, WordStream(stream_key), 0

    def packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        first, last = start // _WORD, -(-stop // _WORD)
        if first != self._at:
            self._words = WordStream(self._key, first)
        found, self._at = self._words.read_bytes(last - first), last
        return found[start // 8 - 8 * first : -(-stop // 8) - 8 * first]


class PackedSigns(_Signs):
    """Signs that are given, an element a bit, instead of drawn."""

    def __init__(self, signs: bytes) -> None:
        # A copy: torch takes no array that cannot be written.
        self._bytes = np.frombuffer(bytearray(signs), dtype=np.uint8)

    def packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes that hold the signs of elements ``start .. stop``."""
        return self._bytes[start // 8 : -(-stop // 8)]


class _SignProduct:
    """``±constant``; row ``b`` of its table is that for the bits of byte ``b``."""

    def __init__(self, signs: _Signs, constant: np.float32, scratch: Scratch) -> None:
        self._signs, self._scratch = signs, scratch
        self._table = np.multiply(_SIGNS, constant)

    def write(self, out: F32, start: int) -> None:
        packed, skip = self._signs.packed(start, start + len(out)), start % 8
        index = self._scratch[: len(packed)]
        index[:] = packed
        # Whole bytes are written in place, the few elements before and behind them aside.
        first = min(-skip % 8, len(out))
        if first:
            out[:first] = self._table[index[0], skip : skip + first]
            index = index[1:]
        count = (len(out) - first) // 8
        whole = out[first : first + 8 * count].reshape(-1, 8)
        # Every index is legal; of the modes without a check this one is the fastest.
        self._table.take(index[:count], axis=0, out=whole, mode="wrap")
        if rest := (len(out) - first) % 8:
            out[-rest:] = self._table[index[count], :rest]


def _expand(halves: Tensor, constant: float) -> Tensor:
    """Return ``±constant`` for the bits of 32-bit halves of words: float32, on their device."""
    shifts = torch.arange(32, dtype=torch.int32, device=halves.device)
    bits = (halves.unsqueeze(1) >> shifts).bitwise_left_shift_(31)
    pattern = int(np.float32(constant).view(np.int32))  # a number: nothing waits for a copy
    return bits.bitwise_xor_(pattern).view(torch.float32).reshape(-1)


def signs_of(packed: Tensor) -> Tensor:
    """Return ±1 for the 8 bits of each byte: float32, on the device of ``packed``."""
    shifts = torch.arange(8, dtype=torch.int32, device=packed.device)
    bits = (packed.to(torch.int32).unsqueeze(1) >> shifts).bitwise_and_(1)
    return bits.to(torch.float32).mul_(-2.0).add_(1.0).reshape(-1)


def outer(rows: Tensor, columns: Tensor, low: int, high: int) -> Tensor:
    """Return elements ``low .. high`` of ``rows columnsᵀ``, counted row by row, low < high."""
    width = len(columns)
    first, last = low // width, -(-high // width)
    return (rows[first:last, None] * columns).reshape(-1)[
        low - first * width : high - first * width
    ]
