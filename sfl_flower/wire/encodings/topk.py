"""The largest values of each row, the rest left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar
from zlib import crc32

import numpy as np

from sfl_flower.errors import WireError

__all__ = ["RandomTopK", "TopK"]

_KEPT = ".kept"


class TopK:
    """A share of each row, those of largest absolute value, and a bit of each place.

    A row is a sample, or a position of a text.  What is left out is zero where it arrives.

    Parameters
    ----------
    share : float
        Of the values of a row, above 0, at most 1; at least one travels.
    """

    parts: ClassVar[Mapping[str, str]] = {_KEPT: "uint8"}

    def __init__(self, share: float) -> None:
        self._share = share

    def count(self, size: int) -> int:
        """Return how many values of a row of `size` travel."""
        return min(size, max(1, math.ceil(self._share * size)))

    def pick(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the values that travel, [n, k], and the bits of the places of each row."""
        count, (n, size) = self.count(rows.shape[1]), rows.shape
        order = np.argsort(-np.abs(rows), axis=1, kind="stable")
        chosen = self._choose(rows, order, count) if count < size else order
        kept = np.zeros((n, size), bool)
        np.put_along_axis(kept, chosen, True, axis=1)
        return rows[kept].reshape(n, count), {_KEPT: np.packbits(kept, axis=1)}

    def _choose(self, rows: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
        return order[:, :count]

    def put(self, rows: np.ndarray, parts: Mapping[str, np.ndarray], size: int) -> np.ndarray:
        """Return rows [n, size] with the values in their places, zeros elsewhere.

        Raises
        ------
        WireError
            If the bits are not those of such rows.
        """
        n, count = rows.shape
        if not rows.size:
            return np.zeros((n, size), np.float32)
        width = -(-size // 8)
        if parts[_KEPT].size != n * width:
            raise WireError(
                f"Of the largest values of {n} rows of {size} came {parts[_KEPT].size} bytes of "
                f"places; there are {n * width}."
            )
        kept = np.unpackbits(parts[_KEPT].reshape(n, width), axis=1)[:, :size].astype(bool)
        if (kept.sum(axis=1) != count).any():
            raise WireError(
                f"The places of the largest values must be {count} of each row of {size}."
            )
        whole = np.zeros((n, size), np.float32)
        whole[kept] = rows.reshape(-1)
        return whole


class RandomTopK(TopK):
    """Of the values that travel about a tenth are others than the largest, drawn evenly.

    What is drawn follows from the values (Zheng et al., arXiv 2305.18469, whose α is 0.1 here).
    """

    _ODD: ClassVar[float] = 0.1

    def _choose(self, rows: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(crc32(np.ascontiguousarray(rows).data)))
        n, size = rows.shape
        odd = generator.binomial(min(count, size - count), self._ODD, n)
        # Keys of a draw without replacement: the first places of each part are the drawn ones.
        first = np.argsort(generator.random((n, count)), axis=1)
        rest = count + np.argsort(generator.random((n, size - count)), axis=1)
        places = np.arange(count)[None]
        others = np.pad(rest, ((0, 0), (0, max(0, 2 * count - size))))[:, :count]
        chosen = np.where(places < odd[:, None], others, first)
        return np.take_along_axis(order, chosen, axis=1)
