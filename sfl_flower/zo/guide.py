"""Guides: a direction that somebody chose, as one sign an element and one factor a tensor.

All other directions are drawn, and follow from a key.  A guide does not: its signs travel once, in
a request or a journal entry, and whoever has them replays the same step.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.errors import JournalError, WireError
from sfl_flower.zo.keys import Key
from sfl_flower.zo.law import F32, Shapes, Values
from sfl_flower.zo.signs import PackedSigns

if TYPE_CHECKING:
    from sfl_flower.zo.directions import Directions

__all__ = ["GUIDE_HEAD", "LARGEST_FACTOR", "Guide", "guide_bytes", "guided"]

LARGEST_FACTOR = 1e12
_HEAD = struct.Struct("<II")
GUIDE_HEAD = _HEAD.size
"""Bytes of the counts before factors and signs."""
_MOST_TENSORS = 1 << 20
_LIMIT = 1 << 32
_BLOCK = 65536


@dataclass(frozen=True, eq=False)
class Guide:
    """The direction ``a[t] · s`` with ``s`` of ±1 and a factor for each tensor.

    Attributes
    ----------
    size : int
        d, its elements.
    signs : bytes
        ``s``, packed as Rademacher directions are: bit ``e mod 8`` of byte ``e div 8`` is 1 where
        element e is negative; bits beyond d are 0.
    factors : numpy.ndarray
        ``a``, float32, shape [tensors], at most ±1e12 each; kept as a read-only copy.

    Raises
    ------
    JournalError
        If a field is outside its range.
    """

    size: int
    signs: bytes
    factors: NDArray[np.float32]

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size < _LIMIT:
            raise JournalError(f"A guide has {self.size!r} elements; legal: 1 .. 2**32 - 1.")
        needed = -(-self.size // 8)
        if len(self.signs) != needed:
            raise JournalError(f"A guide of {self.size} elements has {needed} bytes of signs.")
        if self.signs[-1] >> (self.size - 1) % 8 + 1:
            raise JournalError("A guide has signs beyond its elements; those bits must be 0.")
        with np.errstate(over="ignore"):
            factors = np.array(self.factors, dtype=np.float32, order="C")
        if factors.ndim != 1 or not 1 <= factors.size <= _MOST_TENSORS:
            raise JournalError(
                f"A guide has factors of shape {factors.shape}; it needs one a tensor, 1 .. "
                f"{_MOST_TENSORS}."
            )
        if not (np.abs(factors) <= LARGEST_FACTOR).all():
            raise JournalError(
                f"A factor of a guide is not finite or beyond ±{LARGEST_FACTOR:g}; leave that "
                "guide out."
            )
        factors.setflags(write=False)
        object.__setattr__(self, "factors", factors)

    @classmethod
    def towards(cls, target: NDArray[np.float32], shapes: Shapes) -> Guide | None:
        """Return the guide that lies closest to a vector, of norm ``√d`` as drawn directions are.

        Its signs are the vector's, its factor of a tensor is proportional to the mean magnitude
        there: of all ``a[t] · s`` that makes the largest cosine.

        Parameters
        ----------
        target : numpy.ndarray
            Flat float32 vector.
        shapes : tuple of tuple of int
            Of the tensors that it holds, in its order.

        Returns
        -------
        Guide or None
            None for a vector without a direction: one that is 0 or not finite.
        """
        spans = _spans(shapes)
        means = [
            float(np.abs(target[low:high]).mean(dtype=np.float64)) if high > low else 0.0
            for low, high in spans
        ]
        squares = [a * a * (high - low) for a, (low, high) in zip(means, spans, strict=True)]
        norm = math.sqrt(math.fsum(squares)) if np.isfinite(target).all() else 0.0
        if not 0.0 < norm < math.inf:
            return None
        factors = np.array([mean * math.sqrt(target.size) / norm for mean in means], np.float32)
        packed = np.packbits(target < 0, bitorder="little").tobytes()
        return cls(target.size, packed, factors)

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded guide."""
        return _HEAD.size + 4 * self.factors.size + len(self.signs)

    def times(self, factor: float) -> Guide:
        """Return the guide times a number, each factor rounded to float32 once.

        Raises
        ------
        JournalError
            If a factor leaves its range.
        """
        with np.errstate(over="ignore"):
            factors = (self.factors.astype(np.float64) * factor).astype(np.float32)
        return Guide(self.size, self.signs, factors)

    def fits(self, shapes: Shapes) -> bool:
        """Tell whether it is a direction over tensors of these shapes."""
        return len(shapes) == self.factors.size and _spans(shapes)[-1][1] == self.size

    def values(self, shapes: Shapes, factors: Sequence[float] | None = None) -> Values:
        """Return its elements over the tensors that it `fits`, with its own factors or others."""
        used = self.factors if factors is None else np.array(factors, dtype=np.float32)
        return _ByTensor(PackedSigns(self.signs), [high for _, high in _spans(shapes)], used)

    def squared(self, shapes: Shapes) -> float:
        """Return its squared norm."""
        spans = zip(self.factors.tolist(), _spans(shapes), strict=True)
        return math.fsum(factor * factor * (high - low) for factor, (low, high) in spans)

    def overlap(self, other: Values, shapes: Shapes) -> float:
        """Return its inner product with a direction; with Rademacher signs exact on any machine."""
        signs, sums = PackedSigns(self.signs), []
        mine, theirs = np.empty((2, min(_BLOCK, self.size)), dtype=np.float32)
        for factor, (low, high) in zip(self.factors.tolist(), _spans(shapes), strict=True):
            total = 0.0  # of signs alone a whole number
            for start in range(low, high, _BLOCK):
                count = min(_BLOCK, high - start)
                signs.write(mine[:count], start, np.float32(1.0))
                other.write(theirs[:count], start, np.float32(1.0))
                np.multiply(mine[:count], theirs[:count], out=mine[:count])
                total += float(mine[:count].sum(dtype=np.float64))
            sums.append(factor * total)
        return math.fsum(sums)

    def encode(self) -> bytes:
        """Return the canonical bytes (format: ``docs/journal.md``)."""
        factors = self.factors.astype("<f4", copy=False).tobytes()
        return _HEAD.pack(self.size, self.factors.size) + factors + self.signs

    @classmethod
    def decode(cls, data: bytes) -> Guide:
        """Read a guide that fills ``data`` exactly.

        Raises
        ------
        WireError
            If the bytes are not the canonical form of a legal guide.
        """
        factors, signs = guide_bytes(data, 0)
        start, end = _HEAD.size + factors, _HEAD.size + factors + signs
        if end != len(data):
            raise WireError(f"A guide has {len(data) - end} bytes too many.")
        size, tensors = _HEAD.unpack_from(data)
        try:
            return cls(size, data[start:], np.frombuffer(data, "<f4", tensors, _HEAD.size))
        except JournalError as error:
            raise WireError(f"A received guide is not legal: {error}") from error


def guide_bytes(data: bytes, offset: int) -> tuple[int, int]:
    """Return the bytes of factors and of signs of an encoded guide, which follow 8 of their counts.

    Sizes are checked against the bytes that are there.

    Raises
    ------
    WireError
        If these are not the bytes of a guide.
    """
    if len(data) - offset < _HEAD.size:
        raise WireError("A guide is cut short before the end of its head.")
    size, tensors = _HEAD.unpack_from(data, offset)
    factors, signs = 4 * tensors, -(-size // 8)
    missing = offset + _HEAD.size + factors + signs - len(data)
    if missing > 0:
        raise WireError(f"A guide is cut short by {missing} bytes.")
    return factors, signs


def guided(
    keys: Sequence[Key],
    coefficients: NDArray[np.float64],
    directions: Directions,
    guide: Guide,
    along: float,
    rest: float,
) -> tuple[NDArray[np.float64], Guide]:
    """Put what probes tell off a guide, and what one told along it, into coefficients.

    With ``q̂`` the guide ``a`` over its norm and ``D`` the derivative along ``a``, the estimate is

        g = (D / ‖a‖) q̂ + ρ (I - q̂q̂ᵀ) Σ c_i u_i,

    which is ``Σ ρ c_i u_i + (D - ρ Σ c_i <a, u_i>) / ‖a‖² · a``.  Where E[u uᵀ] = I and the guide
    was made without a look at the u's, its mean is ``(q̂q̂ᵀ + ρ (I - q̂q̂ᵀ)) ∇L``: the gradient
    for ρ = 1.

    Parameters
    ----------
    keys : sequence of Key
        Of the u's.
    coefficients : numpy.ndarray
        c, float64, as many as keys in whatever shape.
    directions : Directions
        Of the run, over the tensors that the guide fits.
    guide : Guide
        a.
    along : float
        D.
    rest : float
        ρ, what the part off the guide counts.

    Returns
    -------
    tuple of numpy.ndarray and Guide
        The coefficients of the u's, and the guide with its coefficient in its factors.

    Raises
    ------
    JournalError
        If the guide's coefficient leaves its range.
    """
    shapes = directions.shapes
    told = math.fsum(
        c * guide.overlap(directions.values(key, once=True), shapes)
        for key, c in zip(keys, coefficients.reshape(-1).tolist(), strict=True)
    )
    return rest * coefficients, guide.times((along - rest * told) / guide.squared(shapes))


class _ByTensor(Values):
    """Signs times the factor of the tensor in which an element lies."""

    def __init__(self, signs: PackedSigns, ends: Sequence[int], factors: F32) -> None:
        self._signs, self._ends, self._factors = signs, ends, factors

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        for low, high, factor in self._parts(start, start + len(out)):
            self._signs.write(out[low - start : high - start], low, np.multiply(factor, constant))

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        return torch.cat(
            [
                self._signs.on(device, low, high, np.multiply(factor, constant))
                for low, high, factor in self._parts(start, stop)
            ]
        )

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, np.float32]]:
        """Cut ``start .. stop`` where tensors end."""
        tensor, low = bisect_right(self._ends, start), start
        while low < stop:
            high = min(stop, self._ends[tensor])
            if high > low:
                yield low, high, self._factors[tensor]
            low, tensor = high, tensor + 1


def _spans(shapes: Shapes) -> list[tuple[int, int]]:
    """Return where each tensor begins and ends in the flat vector."""
    ends = list(accumulate(math.prod(shape) for shape in shapes))
    return list(zip([0, *ends[:-1]], ends, strict=True))
