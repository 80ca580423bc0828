"""Probes in a cone around the momentum (ConMeZO, arXiv 2511.02757).

With m the momentum that everyone replays and c the cosine, a direction is
``c √d m / ‖m‖ + √(1 - c²) u`` in place of u.  A sum of such directions needs no other terms than
those of the fresh ones and m itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfl_flower.zo.directions import Direction, Scaled
from sfl_flower.zo.law import F32, upload
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.sums import fixed_sum

__all__ = ["PLAIN", "Cone", "cone_of", "in_cone"]

_SMALLEST = 1e-20
"""Norm of the momentum below which it points nowhere."""


@dataclass(frozen=True)
class Cone:
    """How much of a direction is fresh, and how much lies along the momentum.

    Attributes
    ----------
    fresh : float
        ``√(1 - c²)``, what u is multiplied by.
    along : float
        ``c √d / ‖m‖``, what m is multiplied by; 0 where there is no momentum yet.
    """

    fresh: float = 1.0
    along: float = 0.0


PLAIN = Cone()


def cone_of(spec: OptimizerSpec, slots: Mapping[str, F32]) -> Cone:
    """Return the cone at an optimiser's state, the same to the bit on every machine.

    Parameters
    ----------
    spec : OptimizerSpec
        The optimiser; `PLAIN` where its ``cone`` is 0.
    slots : mapping of str to numpy.ndarray
        Its state vectors, float32.
    """
    if not spec.cone:
        return PLAIN
    axis = slots[spec.axis]
    norm = math.sqrt(fixed_sum(axis, squared=True))
    if norm < _SMALLEST:
        return PLAIN
    fresh = math.sqrt(1.0 - spec.cone * spec.cone)
    return Cone(fresh, spec.cone * math.sqrt(axis.size) / norm)


def in_cone(directions: Sequence[Direction], cone: Cone, axis: F32 | None) -> list[Direction]:
    """Return directions that lean towards the momentum, to probe along.

    Parameters
    ----------
    directions : sequence of Direction
        The fresh ones.
    cone : Cone
        From `cone_of`.
    axis : numpy.ndarray or None
        m, float32, as long as the directions; None without a cone.
    """
    if axis is None or cone == PLAIN:
        return list(directions)
    return [_Leaning(direction, cone, torch.from_numpy(axis)) for direction in directions]


class _Leaning(Direction):
    """``fresh · u + along · m``.

    Probes along it need not have the same bits everywhere: a client reports what it found.
    """

    def __init__(self, fresh: Direction, cone: Cone, axis: Tensor) -> None:
        self.key, self.law = fresh.key, fresh.law
        self.shapes, self.size = fresh.shapes, fresh.size
        self._fresh, self._cone, self._axis = fresh, cone, axis

    def values(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return elements ``start .. stop``: float32, on the CPU."""
        u = self._fresh.values(start, stop)
        return u.mul_(self._cone.fresh).add_(self._axis[start:stop], alpha=self._cone.along)

    def on(self, device: torch.device) -> Tensor:
        """Return the direction on a device, see `Direction.on`."""
        axis = self._axis if device.type == "cpu" else upload(self._axis.numpy(), device)
        u = self._fresh.on(device)
        return u.mul_(self._cone.fresh).add_(axis, alpha=self._cone.along)

    def factors(self) -> None:
        """Return None: the momentum has no factors."""

    def factors_on(self, device: torch.device) -> None:
        """Return None as well."""

    def times(self, scale: float) -> Scaled:
        """Return ``scale * (fresh u + along m)``, see `Direction.times`."""
        fresh = self._fresh.times(scale * self._cone.fresh)
        return _Scaled(fresh, self._axis, float(np.float32(scale * self._cone.along)))


class _Scaled(Scaled):
    def __init__(self, fresh: Scaled, axis: Tensor, along: float) -> None:
        self._fresh, self._axis, self._along = fresh, axis, along

    def add_stretches(
        self, out: Tensor, base: Tensor, stretches: Sequence[tuple[int, int]]
    ) -> None:
        at = 0
        for start, stop in stretches:
            self.add_to(out[at : at + stop - start], base[start:stop], start)
            at += stop - start

    def add_to(self, out: Tensor, base: Tensor, start: int = 0) -> None:
        self._fresh.add_to(out, base, start)
        axis = self._axis[start : start + out.numel()]
        if out.device.type != "cpu":
            axis = upload(axis.numpy(), out.device)
        out.add_(axis, alpha=self._along)
