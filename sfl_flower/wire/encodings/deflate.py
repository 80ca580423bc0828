"""Bytes made fewer without loss, by DEFLATE (RFC 1951)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from sfl_flower.errors import WireError
from sfl_flower.wire.padding import MAX_BYTES

__all__ = ["Deflate"]

_SHAPES = ".shapes"
_LEVEL, _STRATEGY = 6, zlib.Z_FILTERED
"""Few strings of codes repeat, so most is saved by how often each is there."""


class Deflate:
    """All arrays of an encoding in one stream, with the shape of each beside it."""

    parts: ClassVar[Mapping[str, str]] = {"": "uint8", _SHAPES: "uint32"}

    def encode(self, arrays: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the stream, and of each array the number of dimensions and these."""
        shapes = [size for array in arrays for size in (array.ndim, *array.shape)]
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15, 9, _STRATEGY)
        little = (a.astype(a.dtype.newbyteorder("<"), copy=False) for a in arrays)
        stream = b"".join([packer.compress(a.tobytes()) for a in little]) + packer.flush()
        return {"": np.frombuffer(stream, np.uint8), _SHAPES: np.array(shapes, np.uint32)}

    def decode(self, parts: Mapping[str, np.ndarray], dtypes: Sequence[str]) -> list[np.ndarray]:
        """Return an array of each dtype.

        Raises
        ------
        WireError
            If the shapes are none, stand for more than may be read, or the stream is not of them.
        """
        most = 33 * len(dtypes)
        told = [int(size) for size in parts[_SHAPES].reshape(-1)[: most + 1]]
        shapes: list[tuple[int, ...]] = []
        for _ in dtypes:
            ndim = told.pop(0) if told else -1
            if not 0 <= ndim <= min(32, len(told)):
                raise WireError("A deflated array does not say the shape of each of its parts.")
            shapes.append(tuple(told[:ndim]))
            told = told[ndim:]
        kinds = [np.dtype(dtype).newbyteorder("<") for dtype in dtypes]
        if told:
            raise WireError("A deflated array says more shapes than it has parts.")
        # As if no dimension were zero: numpy refuses what is too large in the others.
        of = list(zip(shapes, kinds, strict=True))
        largest = [math.prod(max(size, 1) for size in shape) * k.itemsize for shape, k in of]
        sizes = [math.prod(shape) * kind.itemsize for shape, kind in of]
        if sum(largest) > MAX_BYTES:
            raise WireError(
                f"A deflated array stands for {sum(largest)} bytes in parts of the shapes "
                f"{shapes}; at most {MAX_BYTES} are read."
            )
        opener = zlib.decompressobj(-15)
        try:
            data = opener.decompress(parts[""].tobytes(), sum(sizes) + 1)
        except zlib.error as error:
            raise WireError(f"A deflated array cannot be opened ({error}).") from error
        if len(data) != sum(sizes) or not opener.eof or opener.unused_data:
            raise WireError(f"A deflated array does not hold the {sum(sizes)} bytes of its shapes.")
        found, start = list[np.ndarray](), 0
        for shape, kind, size in zip(shapes, kinds, sizes, strict=True):
            found.append(np.frombuffer(data[start : start + size], kind).reshape(shape))
            start += size
        return found
