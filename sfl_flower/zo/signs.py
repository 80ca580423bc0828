"""Directions of signs: an own sign for each element, or those of two vectors for each matrix.

Of Rademacher directions element ``8 j + b`` has its sign in bit ``b`` of byte ``j``; bit 1 means
minus. On the CPU a byte selects a row of a table that holds the 8 signed constants: one array
operation writes 8 elements per look-up, and the bits keep their natural order. (Shifting words and
flipping the sign bit takes three operations an element where this takes one.)
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.zo.law import F32, Factors, Law, Product, Scratch, Shapes, Values, elements
from sfl_flower.zo.words import WordStream

__all__ = ["PackedSigns", "Rademacher", "RankOne"]

_WORD = 64
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS = np.subtract(np.float32(1.0), np.multiply(np.float32(2.0), _BITS.astype(np.float32)))


class Rademacher(Law):
    """±1 with equal chance; the lowest variance, and one random bit an element."""

    name: ClassVar[str] = "rademacher"
    tag: ClassVar[int] = 0

    def values(self, stream_key: int, shapes: Shapes, once: bool) -> Values:
        """Return the signs; unless read once, the words are drawn at first use and kept."""
        return _Streamed(stream_key) if once else _Kept(stream_key, elements(shapes))


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
        return _Outer(stream_key, shapes)


class _Outer(Values):
    """Outer products; factors weigh ``m + n`` numbers a matrix and are kept."""

    def __init__(self, stream_key: int, shapes: Shapes) -> None:
        self._key, self._shapes = stream_key, shapes

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

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        packed = torch.from_numpy(self.packed(start, stop)).to(device)
        return _expand(packed, float(constant))[start % 8 :][: stop - start]


class _Kept(_Signs):
    """Words of a direction that is used again: ``d / 8`` bytes, so a step never draws twice."""

    def __init__(self, stream_key: int, size: int) -> None:
        self._key, self._size = stream_key, size
        self._bytes: NDArray[np.uint8] | None = None

    def packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        if self._bytes is None:
            self._bytes = WordStream(self._key).read_bytes(-(-self._size // _WORD))
        return self._bytes[start // 8 : -(-stop // 8)]


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


def _expand(packed: Tensor, constant: float) -> Tensor:
    """Return ``±constant`` for the 8 bits of each byte: float32, on the device of ``packed``."""
    shifts = torch.arange(8, dtype=torch.int32, device=packed.device)
    bits = (packed.to(torch.int32).unsqueeze(1) >> shifts) << 31
    pattern = int(np.float32(constant).view(np.int32))  # a number: nothing waits for a copy
    return torch.bitwise_xor(bits, pattern).view(torch.float32).reshape(-1)
