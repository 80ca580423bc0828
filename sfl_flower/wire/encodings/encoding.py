"""How smashed data and cut gradients are written: a format, what is left out, and compression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from sfl_flower.errors import WireError
from sfl_flower.wire.padding import MAX_BYTES

if TYPE_CHECKING:  # what few runs need
    from sfl_flower.wire.encodings.deflate import Deflate
    from sfl_flower.wire.encodings.topk import TopK

__all__ = ["NAMES", "Encoding", "Format", "check_finite"]

NAMES = {
    "smashed": "smashed data",
    "gradients": "cut gradients",
    "downlink": "differences of weights",
}
"""What errors call what is encoded."""


def check_finite(values: np.ndarray, what: str) -> None:
    """Raise `WireError` if a value of what is encoded is not finite."""
    if not np.isfinite(values).all():
        raise WireError(
            f"The {NAMES[what]} hold a value that is not finite, which this encoding cannot say; "
            "lower the learning rates."
        )


class Format(Protocol):
    """What float32 numbers become on the wire.

    Attributes
    ----------
    name : str
        What the options `smashed` and `gradients` call it.
    parts : Mapping[str, str]
        Dtype of each array, by what follows the name of the whole; "" for the numbers themselves.
    packed : bool
        Whether the numbers' array has fewer elements than there are numbers.
    """

    name: ClassVar[str]
    parts: ClassVar[Mapping[str, str]]
    packed: ClassVar[bool]

    def encode(self, rows: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return an array for each of `parts` of float32 [n, m]; not packed, "" is [n, m] too.

        Raises
        ------
        WireError
            If a value cannot be written so.
        """

    def decode(self, parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
        """Return float32 [count, size]; the arrays have the right dtypes, and any shape.

        Raises
        ------
        WireError
            If they do not fit one another.
        """


_SHAPE = ".shape"


class Encoding:
    """A way to send float32 arrays of the cut.

    Padding is left out before and put back after; whoever sent the values keeps them as they were.

    Parameters
    ----------
    name : str
        What the options `smashed` and `gradients` call it.
    format : Format
        What numbers become.
    sparse : TopK, optional
        Which values of a sample travel; all without it.
    deflate : Deflate, optional
        What makes the bytes fewer, without loss.

    Attributes
    ----------
    parts : Mapping[str, str]
        Dtype of each array that it sends, by what follows the name of the whole on the wire, ""
        for nothing; all that arrives is held against this before `decode` sees it.
    """

    def __init__(
        self,
        name: str,
        format: Format,
        sparse: TopK | None = None,
        deflate: Deflate | None = None,
    ) -> None:
        self.name, self._format, self._sparse, self._deflate = name, format, sparse, deflate

    @property
    def _shaped(self) -> bool:
        """Whether the first array has the shape of the whole."""
        return self._sparse is None and not self._format.packed

    @cached_property
    def _inner(self) -> Mapping[str, str]:
        sparse = {} if self._sparse is None else self._sparse.parts
        shape = {} if self._shaped else {_SHAPE: "uint32"}
        return {**self._format.parts, **sparse, **shape}

    @property
    def parts(self) -> Mapping[str, str]:
        """Dtype of each array on the wire."""
        return self._inner if self._deflate is None else self._deflate.parts

    def encode(self, values: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return what travels, an array for each of `parts`.

        Parameters
        ----------
        values : numpy.ndarray
            float32, shape [n, ...] or, without padding, [rows, ...].
        what : {"smashed", "gradients", "downlink"}
            What they are; also the option that chose this encoding.

        Raises
        ------
        WireError
            If a value cannot be sent so.
        """
        rows = values.reshape(_rows(values.shape))
        found: dict[str, np.ndarray] = {}
        if self._sparse is not None:
            check_finite(rows, what)
            rows, kept = self._sparse.pick(rows)
            found |= kept
        found |= self._format.encode(rows, what)
        if self._shaped:
            found[""] = found[""].reshape(values.shape)
        else:
            found[_SHAPE] = np.array(values.shape, np.uint32)
        if self._deflate is None:
            return found
        return self._deflate.encode([found[suffix] for suffix in self._inner])

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the values, float32, in the shape they had.

        Parameters
        ----------
        parts : Mapping[str, numpy.ndarray]
            An array for each of `parts`, of that dtype, finite where it holds floats, of any
            shape.

        Raises
        ------
        WireError
            If the arrays do not fit one another.
        """
        if self._deflate is not None:
            opened = self._deflate.decode(parts, list(self._inner.values()))
            parts = dict(zip(self._inner, opened, strict=True))
        shape = self._shape(parts)
        count, size = _rows(shape)
        kept = size if self._sparse is None else self._sparse.count(size)
        if self._shaped:
            parts = {**parts, "": parts[""].reshape(count, size)}
        rows = self._format.decode(parts, count, kept)
        if self._sparse is not None:
            rows = self._sparse.put(rows, parts, size)
        return rows.reshape(shape)

    def _shape(self, parts: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """Return the shape of the whole, which is no larger than what may be read."""
        told = parts[""].shape if self._shaped else parts[_SHAPE].reshape(-1)[:33]
        shape = tuple(int(size) for size in told)
        if not 1 <= len(shape) <= 32 or 4 * math.prod(max(size, 1) for size in shape) > MAX_BYTES:
            raise WireError(
                f"An array in the encoding {self.name} stands for the shape {shape[:33]}; it must "
                f"have 1 to 32 dimensions and at most {MAX_BYTES} bytes."
            )
        return shape


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows an array has, and how long one is.

    A row is a sample, or a position [n, T, H] of a text, whether its padding was left out or not: a
    position of which nothing arrived would count as padding.
    """
    last = 2 if len(shape) == 3 else 1
    return math.prod(shape[:last]), math.prod(shape[last:])
