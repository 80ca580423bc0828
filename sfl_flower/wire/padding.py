"""Leaving padding off the wire: what is empty at the end of a sample need not travel.

A batch of texts is padded to one length: its smashed data z [n, T, H] and cut gradients λ are zero
where nothing was written, and its labels [n, T] are `IGNORED` there.  Where that saves bytes, such
an array travels as the positions before the padding, one sample after another, and how many each
sample has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sfl_flower.training.measures import IGNORED
from sfl_flower.wire.labels import INTEGERS

__all__ = [
    "LABELS",
    "LENGTHS",
    "MAX_BYTES",
    "PADDINGS",
    "POSITIONS",
    "Padding",
    "Shortened",
    "lengths_dtype",
    "restore",
    "shorten",
]

MAX_BYTES = 2**31 - 1
"""Largest array that is read, in bytes: what one protobuf message can carry."""

LABELS = 2**23
"""Most labels that are read: 64 MiB of int64."""

LENGTHS, POSITIONS = ".lengths", ".positions"
"""What follows an array's name in that of its lengths, and in that of the setting that holds T."""

_ENTRY = 48
"""Bytes that another array and another setting cost in Flower's encoding, beside their names."""
_SETTING = 8


@dataclass(frozen=True)
class Padding:
    """What padding is in arrays of one dtype.

    Attributes
    ----------
    ndim : int
        Dimensions of the arrays that have it, [n, T, ...].
    value : numpy.generic
        What each element of padding is, to the bit.
    most : int
        The most bytes of a whole array; one that is larger travels as it is.
    """

    ndim: int
    value: np.generic
    most: int


PADDINGS = {
    "float32": Padding(3, np.float32(0), MAX_BYTES),
    # Unlike zeros, which cost no memory until they are read, labels are written one by one: few
    # bytes must not become many. They are int64 where they arrive.
    **{
        name: Padding(2, np.dtype(name).type(IGNORED), LABELS * np.dtype(name).itemsize)
        for name in INTEGERS
        if np.dtype(name).kind == "i"
    },
}
"""Padding by dtype: of smashed data and cut gradients, and of labels, which have a sign then."""


@dataclass(frozen=True)
class Shortened:
    """An array [n, T, ...] without the padding of its samples.

    Attributes
    ----------
    rows : numpy.ndarray
        What is left, shape [sum of lengths, ...].
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

    Padding are the rows at the end of a sample whose every bit is that of padding: among zeros a
    row with a -0.0 stays.

    Parameters
    ----------
    name : str
        What the array is called on the wire.
    array : numpy.ndarray
        Any array; only float32 of shape [n, T, H] and signed integers [n, T] can have padding.
    """
    lengths = _lengths(array)
    if lengths is None or _cost(name, array, lengths) >= array.nbytes:
        return None
    positions = array.shape[1]
    kept = np.arange(positions) < lengths[:, None]
    return Shortened(array[kept], lengths.astype(lengths_dtype(positions)), positions)


def restore(
    rows: np.ndarray, lengths: np.ndarray, positions: int, padding: Padding
) -> np.ndarray | str:
    """Put the padding back; the exact inverse of `shorten`.

    Parameters
    ----------
    rows, lengths, positions
        As in `Shortened`, from the wire: nothing is made of them before it is checked.
    padding : Padding
        That of the rows' dtype.

    Returns
    -------
    numpy.ndarray or str
        Shape [n, T, ...], read-only; or what is wrong.
    """
    shape, most = (len(lengths), positions, *rows.shape[1:]), padding.most
    if math.prod(max(size, 1) for size in shape) * rows.itemsize > most:
        return f"that stands for {shape}, more than the {most} bytes that are read"
    if lengths.size and int(lengths.max()) > positions:
        return f"with a sample of {int(lengths.max())} rows, at most {positions} are possible"
    # At most 2**31 samples of at most 2**31 rows: the sum cannot wrap around.
    ends = np.cumsum(lengths, dtype=np.int64)
    if (total := int(ends[-1]) if ends.size else 0) != len(rows):
        return f"of {len(rows)} rows for samples of {total}"
    whole = np.zeros(shape, rows.dtype)  # pages of zeros cost nothing until they are read
    if padding.value:
        whole.fill(padding.value)
    gaps = np.arange(len(lengths)) * positions - (ends - lengths)
    flat = whole.reshape(-1, *rows.shape[1:])
    flat[np.arange(total) + np.repeat(gaps, lengths)] = rows
    whole.flags.writeable = False
    return whole


def _lengths(array: np.ndarray) -> np.ndarray | None:
    """Return the number of rows before the padding, int64 [n]; None where there is no padding."""
    padding = PADDINGS.get(array.dtype.name)
    if padding is None or (array.dtype, array.ndim) != (padding.value.dtype, padding.ndim):
        return None
    if not 0 < array.nbytes <= padding.most:
        return None
    bits, blank = (x.view(f"u{array.itemsize}") for x in (array, padding.value))
    if array.ndim == 2:
        bits = bits[:, :, None]
    ends = (bits[:, -1] == blank).all(axis=1)
    if not ends.any():  # the usual case without texts, and it costs one row a sample
        return None
    lengths = np.full(len(array), array.shape[1])
    real = (bits[ends] != blank).any(axis=2)[:, ::-1]
    lengths[ends] = np.where(real.any(axis=1), array.shape[1] - real.argmax(axis=1), 0)
    return lengths


def _values(array: np.ndarray, lengths: np.ndarray) -> int:
    row = array.itemsize * math.prod(array.shape[2:])
    return int(lengths.sum()) * row + lengths.size * lengths_dtype(array.shape[1]).itemsize


def _cost(name: str, array: np.ndarray, lengths: np.ndarray) -> int:
    names = 2 * len(name.encode()) + len(LENGTHS) + len(POSITIONS)
    return _values(array, lengths) + _ENTRY + _SETTING + names
