"""Leaving padding off the wire: rows of zeros at the end of a sample need not travel.

A batch of texts is padded to one length, and its smashed data z [n, T, H] and cut gradients λ are
zero where nothing was written.  Where that saves bytes, such an array travels as the rows before
the padding, one sample after another, and how many each sample has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["LENGTHS", "POSITIONS", "Shortened", "lengths_dtype", "restore", "sent_bytes", "shorten"]

LENGTHS, POSITIONS = ".lengths", ".positions"
"""What follows an array's name in that of its lengths, and in that of the setting that holds T."""

_HEAD = 128
"""Bytes of an `.npy` header, what a second array costs beside its values."""
_SETTING = 8


@dataclass(frozen=True)
class Shortened:
    """An array [n, T, H] without the padding of its samples.

    Attributes
    ----------
    rows : numpy.ndarray
        What is left, float32, shape [sum of lengths, H].
    lengths : numpy.ndarray
        Rows of each sample, the smallest unsigned integers that hold T, shape [n].
    positions : int
        T.
    """

    rows: np.ndarray
    lengths: np.ndarray
    positions: int


def lengths_dtype(positions: int) -> np.dtype:
    """Return the smallest unsigned integer type that holds lengths up to `positions`."""
    return np.min_scalar_type(positions)


def shorten(name: str, array: np.ndarray) -> Shortened | None:
    """Return an array without its padding, None where leaving it out saves nothing.

    Padding are the rows at the end of a sample whose every bit is zero: a row with a -0.0 stays.

    Parameters
    ----------
    name : str
        What the array is called on the wire.
    array : numpy.ndarray
        Any array; only float32 of shape [n, T, H] can have padding.
    """
    lengths = _lengths(array)
    if lengths is None or _cost(name, array, lengths) >= array.nbytes:
        return None
    positions = array.shape[1]
    kept = np.arange(positions) < lengths[:, None]
    return Shortened(array[kept], lengths.astype(lengths_dtype(positions)), positions)


def sent_bytes(name: str, array: np.ndarray | None) -> int:
    """Count the bytes of an array as it travels: its rows and their lengths, headers left out."""
    if array is None:
        return 0
    lengths = _lengths(array)
    if lengths is None or _cost(name, array, lengths) >= array.nbytes:
        return array.nbytes
    return _values(array, lengths)


def restore(rows: np.ndarray, lengths: np.ndarray, positions: int, most: int) -> np.ndarray | str:
    """Put the padding back; the exact inverse of `shorten`.

    Parameters
    ----------
    rows, lengths, positions
        As in `Shortened`, from the wire: nothing is made of them before it is checked.
    most : int
        The most bytes that the whole array may have.

    Returns
    -------
    numpy.ndarray or str
        float32 of shape [n, T, H], read-only; or what is wrong.
    """
    shape = len(lengths), positions, rows.shape[1]
    if math.prod(max(size, 1) for size in shape) * rows.itemsize > most:
        return f"that stands for {shape}, more than the {most} bytes that are read"
    if lengths.size and int(lengths.max()) > positions:
        return f"with a sample of {int(lengths.max())} rows, at most {positions} are possible"
    # At most 2**31 samples of at most 2**31 rows: the sum cannot wrap around.
    ends = np.cumsum(lengths, dtype=np.int64)
    if (total := int(ends[-1]) if ends.size else 0) != len(rows):
        return f"of {len(rows)} rows for samples of {total}"
    # What is touched from here on is as much as arrived: pages of zeros cost nothing until read.
    whole = np.zeros(shape, rows.dtype)
    gaps = np.arange(len(lengths)) * positions - (ends - lengths)
    whole.reshape(-1, shape[2])[np.arange(total) + np.repeat(gaps, lengths)] = rows
    whole.flags.writeable = False
    return whole


def _lengths(array: np.ndarray) -> np.ndarray | None:
    """Return the number of rows before the padding, int64 [n]; None where there is no padding."""
    if array.dtype != np.float32 or array.ndim != 3 or not array.size:
        return None
    bits = array.view(np.uint32)
    ends = ~bits[:, -1].any(axis=1)
    if not ends.any():  # the usual case without texts, and it costs one row a sample
        return None
    lengths = np.full(len(array), array.shape[1])
    real = (bits[ends] != 0).any(axis=2)[:, ::-1]
    lengths[ends] = np.where(real.any(axis=1), array.shape[1] - real.argmax(axis=1), 0)
    return lengths


def _values(array: np.ndarray, lengths: np.ndarray) -> int:
    row = array.itemsize * int(array.shape[2])
    return int(lengths.sum()) * row + lengths.size * lengths_dtype(array.shape[1]).itemsize


def _cost(name: str, array: np.ndarray, lengths: np.ndarray) -> int:
    names = 2 * len(name.encode()) + len(LENGTHS) + len(POSITIONS)
    return _values(array, lengths) + _HEAD + _SETTING + names
