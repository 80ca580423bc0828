"""Directions ``u``: pure functions of run, law, shapes and key, readable from any element on.

The format is specified in ``docs/directions.md`` and held by golden vectors in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sfl_flower.errors import ConfigError
from sfl_flower.zo.keys import RUN_KEY_BYTES, Key, philox_key, step_keys
from sfl_flower.zo.law import (
    F32,
    DeviceFactors,
    Factors,
    Product,
    Scratch,
    Shapes,
    Values,
    blocks,
    check_pair,
    elements,
)
from sfl_flower.zo.laws import find_law

if TYPE_CHECKING:  # what few runs need
    from sfl_flower.zo.channels import Channels
    from sfl_flower.zo.guide import Guide

__all__ = ["Direction", "Directions", "Scaled"]

_DEVICE_BLOCK = 1 << 22


class Directions:
    """All directions of a run over some tensors, each a pure function of its key.

    Every law has ``E[u uᵀ] = I``, so the scale of the papers' estimators is 1 for each of them.

    Parameters
    ----------
    run_key : bytes
        16 bytes from `sfl_flower.zo.run_key`.
    law : str
        A name of `sfl_flower.zo.LAWS`.
    shapes : sequence of tuple of int
        Shapes of the tensors that the directions move, in the order of the flat vector
        (`ParameterVector.shapes`).
    apart : sequence of bool, optional
        Which tensors are told apart by channel (`sfl_flower.zo.channels`); none by default.

    Attributes
    ----------
    run_key, law, shapes : bytes, str, tuple
        As given.
    size : int
        Number of elements ``d``.
    channels : Channels or None
        Which elements take which of a direction's coefficients; None where it has one.

    Raises
    ------
    ConfigError
        If an argument is outside its legal range.
    """

    def __init__(
        self,
        run_key: bytes,
        law: str,
        shapes: Sequence[tuple[int, ...]],
        apart: Sequence[bool] = (),
    ) -> None:
        if len(run_key) != RUN_KEY_BYTES:
            raise ConfigError(
                f"run_key must be {RUN_KEY_BYTES} bytes; make one with zo.run_key(seed)."
            )
        self._law = find_law(law)
        self.run_key, self.law = run_key, law
        self.shapes: Shapes = tuple(tuple(shape) for shape in shapes)
        if any(type(n) is not int or n < 0 for shape in self.shapes for n in shape):
            raise ConfigError(
                f"Directions got the shapes {self.shapes}; each is a tuple of ints from 0 on."
            )
        self.size = elements(self.shapes)
        if self.shapes and self.size < 1:
            raise ConfigError(f"Directions of shapes {self.shapes} have no element; they need one.")

        self._scratch: Scratch = np.empty(0, dtype=np.intp)
        self.channels: Channels | None = None
        if any(apart):
            from sfl_flower.zo.channels import Channels

            if len(apart) != len(self.shapes):
                raise ConfigError(
                    f"{len(apart)} tensors are told apart by channel or not, the directions move "
                    f"{len(self.shapes)}; name all of them."
                )
            self.channels = Channels(self.shapes, tuple(apart))

    @property
    def parts(self) -> int:
        """Coefficients of a direction: 1, or one of the whole and one of each channel."""
        return 1 if self.channels is None else self.channels.parts

    def of(self, key: Key) -> Direction:
        """Return the direction that a key names; what it draws is kept for further use."""
        return self.of_keys([key])[0]

    def along(self, guide: Guide) -> Direction:
        """Return the direction that a guide is.

        Raises
        ------
        ConfigError
            If it is one over other tensors.
        """
        if not guide.fits(self.shapes):
            raise ConfigError(
                f"A guide of {guide.size} elements and {guide.factors.size} factors is one over "
                f"other tensors than these of {self.size} elements."
            )
        return Direction(self, guide.values(self.shapes))

    def of_step(self, round: int, step: int, stream: int, probes: int) -> list[Direction]:
        """Return the directions of one mini-batch or local step, see `step_keys`."""
        return self.of_keys(step_keys(round, step, stream, probes))

    def of_keys(self, keys: Sequence[Key]) -> list[Direction]:
        """Return the directions of a mini-batch, which a GPU draws at once."""
        streams = [philox_key(self.run_key, key, self._law.tag) for key in keys]
        values = self._law.together(streams, self.shapes)
        return [Direction(self, each, key) for each, key in zip(values, keys, strict=True)]

    def terms(
        self, keys: Sequence[Key], coefficients: Sequence[float], scratch: Scratch
    ) -> list[Product]:
        """Return ``c · u`` of each key, to be read once from front to back.

        Parameters
        ----------
        keys : sequence of Key
            Of the directions.
        coefficients : sequence of float
            Of each direction its `parts`, one after another; rounded to float32.
        scratch : numpy.ndarray
            See `Scratch`; for the largest block that will be written.
        """
        if self.channels is None:
            return [
                self.values(key, once=True).times(np.float32(coefficient), scratch)
                for key, coefficient in zip(keys, coefficients, strict=True)
            ]
        parts, found = self.channels.parts, []
        for number, key in enumerate(keys):
            constants = coefficients[number * parts : (number + 1) * parts]
            found.append(self.channels.product(self.values(key, once=True), constants))
        return found

    def scratch(self, block: int) -> Scratch:
        """Return room for blocks of so many elements; all directions take turns with it."""
        wanted = min(block, self.size) // 8 + 2
        if len(self._scratch) < wanted:
            self._scratch = np.empty(wanted, dtype=np.intp)
        return self._scratch

    def values(self, key: Key, once: bool = False) -> Values:
        """Return the elements of the direction that a key names, see `Law.values`."""
        stream_key = philox_key(self.run_key, key, self._law.tag)
        return self._law.values(stream_key, self.shapes, once)


class Direction:
    """One direction over the flat vector of zeroth-order-trained parameters.

    Parameters
    ----------
    directions : Directions
        Those of the run.
    values : Values
        Its elements.
    key : Key, optional
        Round, step, stream and probe; a guide has none.

    Attributes
    ----------
    key, law, shapes, size
        Of this direction, as in `Directions`.
    """

    def __init__(self, directions: Directions, values: Values, key: Key | None = None) -> None:
        self.key, self.law = key, directions.law
        self.shapes, self.size = directions.shapes, directions.size
        self._directions, self._values = directions, values

    def __repr__(self) -> str:
        return f"Direction({self.key}, size={self.size}, law={self.law!r})"

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return elements ``start .. stop`` of ``u``: float32, on the CPU."""
        stop = self.size if stop is None else stop
        self._check_range(start, stop)
        out = np.empty(stop - start, dtype=np.float32)
        block = self._values.block
        product = self._values.times(np.float32(1.0), self._directions.scratch(block))
        for low, high in blocks(start, stop, block):
            product.write(out[low - start : high - start], low)
        return torch.from_numpy(out)

    def on(self, device: torch.device) -> Tensor:
        """Return ``u`` on a device: float32, the bits of `values`."""
        if device.type == "cpu":
            return self.values()
        out = torch.empty(self.size, dtype=torch.float32, device=device)
        for low, high in blocks(0, self.size, _DEVICE_BLOCK):
            out[low:high] = self._values.on(device, low, high, np.float32(1.0))
        return out

    def factors(self) -> Sequence[Factors] | None:
        """Return what the direction is made of over each tensor; None where it has no factors."""
        return self._values.factors()

    def factors_on(self, device: torch.device) -> Sequence[DeviceFactors] | None:
        """Return `factors` on a device."""
        return self._values.factors_on(device)

    def add_to(self, out: Tensor, base: Tensor, scale: float, start: int = 0) -> None:
        """Write ``out = base + scale * u[start : start + len(out)]``.

        Parameters
        ----------
        out, base : Tensor
            Contiguous float32 vectors of one length on one device; ``out`` may be ``base``.
        scale : float
            Rounded to float32 first; product and sum are then two float32 operations.
        start : int
            Element of the direction that meets ``base[0]``.

        Raises
        ------
        ConfigError
            If the tensors do not match, or the scale is not finite in float32.
        """
        self.times(scale).add_to(out, base, start)

    def times(self, scale: float) -> Scaled:
        """Return ``scale * u``, to be added piece by piece; prepared once.

        Parameters
        ----------
        scale : float
            Rounded to float32.

        Raises
        ------
        ConfigError
            If it is not finite in float32.
        """
        with np.errstate(over="ignore"):
            constant = np.float32(scale)
        if not np.isfinite(constant):
            raise ConfigError(f"Direction scale {scale!r} is not finite in float32.")
        return Scaled(self, self._directions, self._values, constant)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ConfigError(
                f"Elements {start}..{stop} are not inside a direction of {self.size} elements."
            )


class Scaled:
    """A direction times a number, which is added to pieces of vectors in any order.

    Parameters
    ----------
    direction : Direction
        u.
    directions : Directions
        Those of the run.
    values : Values
        Its elements.
    constant : numpy.float32
        The number.
    """

    def __init__(
        self, direction: Direction, directions: Directions, values: Values, constant: np.float32
    ) -> None:
        self._direction, self._directions = direction, directions
        self._values, self._constant = values, constant
        self._product: Product | None = None

    def add_to(self, out: Tensor, base: Tensor, start: int = 0) -> None:
        """Write ``out = base + scale * u[start : start + len(out)]``; see `Direction.add_to`."""
        check_pair(out, base)
        self._direction._check_range(start, start + out.numel())
        if out.device.type == "cpu":
            self._add_numpy(out.detach().numpy(), base.detach().numpy(), start)
        else:
            self._add_device(out.detach(), base.detach(), start)

    def add_stretches(self, out: Tensor, base: Tensor, parts: Sequence[tuple[int, int]]) -> None:
        """Write ``base + scale * u`` over stretches of the vector, one after another.

        Parameters
        ----------
        out : Tensor
            Contiguous float32 vector of their elements, apart from `base`.
        base : Tensor
            The whole vector.
        parts : sequence of (int, int)
            First element of each, and that after its last.
        """
        on_cpu, at = out.device.type == "cpu", 0
        if on_cpu:
            into, over = out.numpy(), base.numpy()
        for start, stop in parts:
            end = at + stop - start
            if on_cpu:
                self._add_numpy(into[at:end], over[start:stop], start)
            else:
                self._add_device(out[at:end], base[start:stop], start)
            at = end

    def _add_numpy(self, out: F32, base: F32, start: int) -> None:
        block = self._values.block
        if self._product is None:
            scratch = self._directions.scratch(block)
            self._product = self._values.times(self._constant, scratch)
        # The step is written where the sum will be, unless the other summand is there.
        beside = np.may_share_memory(out, base)
        room = np.empty(min(block, len(out)), dtype=np.float32) if beside else out
        for low, high in blocks(start, start + len(out), block):
            here = slice(low - start, high - start)
            step = room[: high - low] if beside else out[here]
            self._product.write(step, low)
            np.add(base[here], step, out=out[here])

    def _add_device(self, out: Tensor, base: Tensor, start: int) -> None:
        """Do the same on another device, to the same bits."""
        for low, high in blocks(start, start + out.numel(), _DEVICE_BLOCK):
            here = slice(low - start, high - start)
            step = self._values.on(out.device, low, high, self._constant)
            torch.add(base[here], step, out=out[here])
