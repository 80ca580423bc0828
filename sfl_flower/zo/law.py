"""What a law of directions is: how the elements of ``u`` come from the words of one stream."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.errors import ConfigError

__all__ = [
    "F32", "DeviceFactors", "Factors", "Law", "Product", "Scratch", "Shapes", "Values", "blocks",
    "check_pair", "elements", "upload",
]  # fmt: skip

F32 = NDArray[np.float32]
Shapes = tuple[tuple[int, ...], ...]
"""Shapes of the tensors that a direction moves, in the order in which they lie in the vector."""
Scratch = NDArray[np.intp]
"""Room for an integer for every 8 elements of a block; shared by writers that take turns."""


def elements(shapes: Shapes) -> int:
    """Return how many elements tensors of these shapes have together."""
    return sum(math.prod(shape) for shape in shapes)


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return a copy of an array on a device; the host goes on meanwhile.

    Towards CUDA it goes through pinned memory, from where a copy needs no wait.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Product(Protocol):
    """``c · u``, written block by block."""

    def write(self, out: F32, start: int) -> None:
        """Write the elements from ``start`` on, as many as ``out`` has."""


@dataclass(frozen=True)
class Factors:
    """What a direction is made of over one tensor.

    Attributes
    ----------
    start : int
        First element of the tensor in the flat vector.
    rows : numpy.ndarray or None
        a, float32, shape [m]; None for a vector or a scalar.
    columns : numpy.ndarray
        b, float32, shape [n]; of a vector its elements.
    """

    start: int
    rows: F32 | None
    columns: F32

    @property
    def stop(self) -> int:
        """Element after the last."""
        return self.start + len(self.columns) * (1 if self.rows is None else len(self.rows))

    def write(self, out: F32, start: int, constant: np.float32) -> None:
        """Write ``constant`` times the elements from ``start`` on, counted within the tensor."""
        if self.rows is None:
            np.multiply(self.columns[start : start + len(out)], constant, out=out)
            return
        width, done = len(self.columns), 0
        while done < len(out):
            row, skip = divmod(start + done, width)
            if skip or len(out) - done < width:  # the rest of a row, or a beginning
                part = out[done : done + width - skip]
                signs = self.columns[skip : skip + len(part)]
                np.multiply(signs, constant * self.rows[row], out=part)
                done += len(part)
            else:
                count = (len(out) - done) // width
                rows = np.multiply(self.rows[row : row + count], constant)
                whole = out[done : done + count * width].reshape(count, width)
                np.multiply(rows[:, None], self.columns, out=whole)
                done += count * width


class DeviceFactors(NamedTuple):
    """`Factors` where a module computes: a, shape [m], or None, and b, shape [n]; float32."""

    rows: Tensor | None
    columns: Tensor


class Values(ABC):
    """The elements of one direction, from any element on.

    Attributes
    ----------
    block : int
        Elements that are best written at a time, a multiple of 64; by default as many as stay in
        the L2 cache with what is computed on the way.
    """

    block: ClassVar[int] = 65536

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

    def factors(self) -> Sequence[Factors] | None:
        """Return the factors over each tensor in order; None where the law has none."""
        return None

    def factors_on(self, device: torch.device) -> Sequence[DeviceFactors] | None:
        """Return `factors` on a device, to the same bits."""
        if (factors := self.factors()) is None:
            return None
        return [
            DeviceFactors(
                None if f.rows is None else upload(f.rows, device), upload(f.columns, device)
            )
            for f in factors
        ]

    def on(self, device: torch.device, start: int, stop: int, constant: np.float32) -> Tensor:
        """Return ``constant * u[start : stop]`` on a device: float32, the same bits on each.

        Unless a law says how, they are made on the CPU and copied.
        """
        out = np.empty(stop - start, dtype=np.float32)
        self.write(out, start, constant)
        return upload(out, device)


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

    def together(self, stream_keys: Sequence[int], shapes: Shapes) -> list[Values]:
        """Return the elements of the directions of a mini-batch, each to be read often.

        On a GPU a law may draw all of them at once, when the first is read.

        Parameters
        ----------
        stream_keys : sequence of int
            128-bit key of the stream of each direction.
        shapes : tuple of tuple of int
            As for `values`.
        """
        return [self.values(key, shapes, once=False) for key in stream_keys]


def blocks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``start .. stop`` at multiples of ``size`` (an even multiple of 8)."""
    low = start
    while low < stop:
        high = min(stop, (low // size + 1) * size)
        yield low, high
        low = high


def check_pair(out: Tensor, base: Tensor) -> None:
    """Refuse two tensors of which one cannot be added to the other, element by element."""
    for name, tensor in (("out", out), ("base", base)):
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ConfigError(
                f"{name} must be a contiguous float32 vector; it is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}."
            )
    if out.shape != base.shape or out.device != base.device:
        raise ConfigError(
            f"out has {out.numel()} elements on {out.device}, base {base.numel()} on "
            f"{base.device}; both must be equal."
        )
