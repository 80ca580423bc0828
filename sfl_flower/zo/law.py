"""What a law of directions is: how the elements of ``u`` come from the words of one stream."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["F32", "Law", "Product", "Scratch", "Shapes", "Values", "elements"]

F32 = NDArray[np.float32]
Shapes = tuple[tuple[int, ...], ...]
"""Shapes of the tensors that a direction moves, in the order in which they lie in the vector."""
Scratch = NDArray[np.intp]
"""Room for an integer for every 8 elements of a block; shared by writers that take turns."""


def elements(shapes: Shapes) -> int:
    """Return how many elements tensors of these shapes have together."""
    return sum(math.prod(shape) for shape in shapes)


class Product(Protocol):
    """``c · u``, written block by block."""

    def write(self, out: F32, start: int) -> None:
        """Write the elements from ``start`` on, as many as ``out`` has."""


class Values(ABC):
    """The elements of one direction, from any element on."""

    @abstractmethod
    def write(self, out: F32, start: int, constant: np.float32) -> None:
        """Write ``constant * u[start : start + len(out)]``.

        Parameters
        ----------
        out : numpy.ndarray
            float32, one dimension.
        start : int
            First element.
        constant : numpy.float32
            Each element is one float32 product with it.
        """

    def times(self, constant: np.float32, scratch: Scratch) -> Product:
        """Return ``constant * u``, prepared once for many blocks.

        Parameters
        ----------
        constant : numpy.float32
            The factor.
        scratch : numpy.ndarray
            See `Scratch`; for the largest block that will be written.
        """
        return _Scaled(self, constant)

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        """Return ``constant * u[start : stop]`` on a device: float32, the same bits on each."""
        out = np.empty(stop - start, dtype=np.float32)
        self.write(out, start, constant)
        return torch.from_numpy(out).to(device)


class _Scaled:
    def __init__(self, values: Values, constant: np.float32) -> None:
        self._values, self._constant = values, constant

    def write(self, out: F32, start: int) -> None:
        self._values.write(out, start, self._constant)


class Law(ABC):
    """A law of directions with ``E[u uᵀ] = I``; a line in `sfl_flower.zo.laws` makes it known.

    Attributes
    ----------
    name : str
        What settings and messages call it.
    tag : int
        Its number in keys and in a journal's header, 0 … 255; part of the format.
    """

    name: ClassVar[str]
    tag: ClassVar[int]

    @abstractmethod
    def values(self, stream_key: int, shapes: Shapes, once: bool) -> Values:
        """Return the elements of the direction of one stream.

        Parameters
        ----------
        stream_key : int
            128-bit key of the stream of words (`sfl_flower.zo.words.WordStream`).
        shapes : tuple of tuple of int
            Of the tensors that the direction moves. A law that treats every element alike needs
            their number alone.
        once : bool
            Whether they are read once from front to back, so that nothing is worth keeping.
        """
