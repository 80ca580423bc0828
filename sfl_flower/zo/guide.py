"""Guides: a direction that somebody chose, as one sign an element and magnitudes of rank one.

All other directions are drawn, and follow from a key.  A guide does not: its signs travel once, in
a request or a journal entry, and whoever has them replays the same step.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import JournalError, WireError
from sfl_flower.zo.grids import Grid, OfFactors, grids_of
from sfl_flower.zo.keys import Key
from sfl_flower.zo.law import Shapes, Values
from sfl_flower.zo.signs import PackedSigns
from sfl_flower.zo.sums import fixed_sum

if TYPE_CHECKING:
    from sfl_flower.zo.directions import Directions

__all__ = ["LARGEST_FACTOR", "Guide", "guide_bytes", "guided"]

LARGEST_FACTOR = 1e6
"""Largest factor; no product of two leaves the range of coefficients."""
_HEAD = struct.Struct("<II")
_LIMIT = 1 << 32
_BLOCK = 65536


@dataclass(frozen=True, eq=False)
class Guide:
    """A direction with element ``s[e] · r[i] · c[j]`` at row i and column j of a tensor.

    A row is an index of a tensor's first dimension (an output of a layer), a tensor of one
    dimension is one row.

    Attributes
    ----------
    size : int
        d, its elements.
    signs : bytes
        ``s``, packed as Rademacher directions are: bit ``e mod 8`` of byte ``e div 8`` is 1 where
        element e is negative; bits beyond d are 0.
    factors : numpy.ndarray
        ``r`` and then ``c`` of each tensor, float32, at most ±1e6 each; kept as a read-only copy.

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
        if factors.ndim != 1 or not 1 <= factors.size < _LIMIT:
            raise JournalError(f"A guide has factors of shape {factors.shape}; it needs a row.")
        if not (np.abs(factors) <= LARGEST_FACTOR).all():
            raise JournalError(
                f"A factor of a guide is not finite or beyond ±{LARGEST_FACTOR:g}; leave that "
                "guide out."
            )
        factors.setflags(write=False)
        object.__setattr__(self, "factors", factors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Guide) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    @classmethod
    def towards(cls, target: NDArray[np.float32], shapes: Shapes) -> Guide | None:
        """Return a guide that lies close to a vector, of norm ``√d`` as drawn directions are.

        Its signs are the vector's.  Its magnitudes at a row and a column are the mean magnitude of
        the row, times that of the column, over that of the tensor: those of the vector itself where
        they are of rank one, as in the gradient of a layer at one sample.

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
        grids = grids_of(shapes)
        factors = np.zeros(grids[-1].last)
        if not np.isfinite(target).all():
            return None
        for low, high, first, middle, last in grids:
            size = np.abs(target[low:high].astype(np.float64)).reshape(
                middle - first, last - middle
            )
            if size.any():
                # Rows tell how large a tensor's elements are, columns are 1 on average.
                factors[first:middle] = size.mean(axis=1)
                factors[middle:last] = size.mean(axis=0) / size.mean()
        squares = _squared(factors, grids)
        if not 0.0 < squares < math.inf:
            return None
        scale = math.sqrt(target.size / squares)
        for _, _, first, middle, _ in grids:
            factors[first:middle] *= scale
        packed = np.packbits(target < 0, bitorder="little").tobytes()
        return cls(target.size, packed, factors.astype(np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded guide."""
        return _HEAD.size + 4 * self.factors.size + len(self.signs)

    def times(self, factor: float, shapes: Shapes) -> Guide:
        """Return the guide times a number, which goes into the rows' factors.

        Raises
        ------
        JournalError
            If a factor leaves its range.
        """
        factors = self.factors.astype(np.float64)
        for _, _, first, middle, _ in grids_of(shapes):
            factors[first:middle] *= factor
        with np.errstate(over="ignore"):
            return Guide(self.size, self.signs, factors.astype(np.float32))

    def fits(self, shapes: Shapes) -> bool:
        """Tell whether it is a direction over tensors of these shapes."""
        grids = grids_of(shapes)
        return bool(grids) and (grids[-1].high, grids[-1].last) == (self.size, self.factors.size)

    def squared(self, shapes: Shapes) -> float:
        """Return its squared norm."""
        return _squared(self.factors.astype(np.float64), grids_of(shapes))

    def values(
        self,
        shapes: Shapes,
        coefficients: Callable[[NDArray[np.float32]], Sequence[float]] | None = None,
    ) -> Values:
        """Return its elements over the tensors that it `fits`.

        Parameters
        ----------
        shapes : tuple of tuple of int
            Of the tensors.
        coefficients : callable, optional
            What an optimiser makes of coefficients (`Step.coefficients`), and so of the rows'
            factors.
        """
        grids, factors = grids_of(shapes), self.factors.copy()
        if coefficients is not None:
            for _, _, first, middle, _ in grids:
                factors[first:middle] = coefficients(factors[first:middle])
        return OfFactors(PackedSigns(self.signs), grids, factors)

    def overlap(self, other: Values, shapes: Shapes) -> float:
        """Return its inner product with a direction, the same on every machine."""
        own, total = self.values(shapes), 0.0
        mine, theirs = np.empty((2, min(_BLOCK, self.size)), dtype=np.float32)
        for start in range(0, self.size, _BLOCK):
            count = min(_BLOCK, self.size - start)
            own.write(mine[:count], start, np.float32(1.0))
            other.write(theirs[:count], start, np.float32(1.0))
            np.multiply(mine[:count], theirs[:count], out=mine[:count])
            total += fixed_sum(mine[:count])
        return total

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
        end = guide_bytes(data, 0)
        if end != len(data):
            raise WireError(f"A guide has {len(data) - end} bytes too many.")
        size, count = _HEAD.unpack_from(data)
        signs = data[_HEAD.size + 4 * count :]
        try:
            return cls(size, signs, np.frombuffer(data, "<f4", count, _HEAD.size))
        except JournalError as error:
            raise WireError(f"A received guide is not legal: {error}") from error


def guide_bytes(data: bytes, offset: int) -> int:
    """Return the length of an encoded guide, checked against the bytes that are there.

    Raises
    ------
    WireError
        If these are not the bytes of a guide.
    """
    if len(data) - offset < _HEAD.size:
        raise WireError("A guide is cut short before the end of its head.")
    size, count = _HEAD.unpack_from(data, offset)
    length: int = _HEAD.size + 4 * count + -(-size // 8)
    if offset + length > len(data):
        raise WireError(f"A guide is cut short by {offset + length - len(data)} bytes.")
    return length


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
        If a factor of the guide leaves its range.
    """
    shapes = directions.shapes
    counted = zip(keys, coefficients.reshape(-1).tolist(), strict=True) if rest else ()
    told = math.fsum(
        c * guide.overlap(directions.values(key, once=True), shapes) for key, c in counted
    )
    own = guide.times((along - rest * told) / guide.squared(shapes), shapes)
    return rest * coefficients, own


def _squared(factors: NDArray[np.float64], grids: Sequence[Grid]) -> float:
    """Return the squared norm: of rank one, so that of its rows times that of its columns."""

    def norm(low: int, high: int) -> float:
        return math.fsum((factors[low:high] * factors[low:high]).tolist())

    return math.fsum(norm(g.first, g.middle) * norm(g.middle, g.last) for g in grids)
