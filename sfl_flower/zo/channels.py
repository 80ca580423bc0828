"""Directions whose parts have coefficients of their own, one part for each channel at the cut.

Where row c of a tensor reaches nothing but channel c of the smashed data, of the tensor's rows only
that one tells in what a probe changes there.  One forward along u then gives a scalar for each
channel.  The estimate of a row has the noise of its own elements, and of what is trained before it,
not of all d:

    v_c = <λ_c, f_c(x; θ + μ u)_c - z_c>,   g_c = 1/(P μ) Σ_p v_{p,c} u_{p,c}

Other tensors take the scalar of the whole batch, Σ_c v_c.  Each part is as unbiased as the whole
is, for E[u uᵀ] = I.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import ConfigError
from sfl_flower.zo.law import F32, Product, Shapes, Values

__all__ = ["Channels", "clip_channels"]


@dataclass(frozen=True)
class Channels:
    """Which tensors of a vector are told apart by channel, a row of them a channel.

    Attributes
    ----------
    shapes : tuple of tuple of int
        Of the tensors, in the order of the vector.
    apart : tuple of bool
        Whether the rows of each tensor (indices of its first dimension) have scalars of their own.

    Raises
    ------
    ConfigError
        If none has, or these have different numbers of rows.
    """

    shapes: Shapes
    apart: tuple[bool, ...]

    def __post_init__(self) -> None:
        rows = {shape[:1] for shape, apart in zip(self.shapes, self.apart, strict=True) if apart}
        if len(rows) != 1 or rows == {()} or rows == {(0,)}:
            raise ConfigError(
                f"Tensors with the rows {sorted(rows)} are to be told apart by channel; it must be "
                "one number, that of the channels at the cut."
            )

    @cached_property
    def count(self) -> int:
        """C, the channels."""
        return next(s[0] for s, apart in zip(self.shapes, self.apart, strict=True) if apart)

    @property
    def parts(self) -> int:
        """Coefficients of a direction: that of the whole first, then one of each channel."""
        return 1 + self.count

    @cached_property
    def of_element(self) -> NDArray[np.int32]:
        """Which coefficient each element of the vector takes, shape [d]."""
        found = []
        for shape, apart in zip(self.shapes, self.apart, strict=True):
            if apart:
                rows = np.arange(1, self.parts, dtype=np.int32)
                found.append(np.repeat(rows, math.prod(shape[1:])))
            else:
                found.append(np.zeros(math.prod(shape), dtype=np.int32))
        return np.concatenate(found)

    @property
    def noise_size(self) -> int:
        """Elements among which the noise of an estimate arises: those without channel, and a row.

        d/P of this number, not of all elements, says how noisy a step is.
        """
        pairs = zip(self.shapes, self.apart, strict=True)
        return sum(math.prod(shape[apart:]) for shape, apart in pairs)

    def product(self, values: Values, constants: Sequence[float]) -> Product:
        """Return a direction times the coefficient of each element's part.

        Parameters
        ----------
        values : Values
            The direction.
        constants : sequence of float
            `parts` of them, rounded to float32.
        """
        return _Product(values, np.array(constants, dtype=np.float32), self.of_element)


class _Product:
    def __init__(self, values: Values, constants: F32, index: NDArray[np.int32]) -> None:
        self._values, self._constants, self._index = values, constants, index

    def write(self, out: F32, start: int) -> None:
        self._values.write(out, start, np.float32(1.0))
        np.multiply(out, self._constants[self._index[start : start + len(out)]], out=out)


def clip_channels(scalars: NDArray[np.floating], unit: float, limit: float) -> NDArray[np.float64]:
    """Scale the scalars of one mini-batch so that the gradients they tell of are not above a norm.

    What is told apart and the rest are clipped by themselves: the squares of the channels' scalars,
    summed over channels and averaged over probes, estimate ‖∇L‖² of what is told apart with far
    less spread than the squares of the whole's, which the rest goes by.

    Parameters
    ----------
    scalars : NDArray
        v of one mini-batch, shape [P, 1 + C], that of the whole first.
    unit : float
        What a scalar is divided by to be a derivative (`Probing.unit`).
    limit : float
        The largest norm; 0 leaves the scalars as they are.

    Returns
    -------
    NDArray[np.float64]
        Shape [P, 1 + C].
    """
    found = scalars.astype(np.float64)
    if limit <= 0:
        return found
    # Exact sums: the order of additions differs between processors.
    for part in (found[:, :1], found[:, 1:]):
        norm = math.sqrt(math.fsum((part**2).reshape(-1).tolist()) / len(found)) / unit
        if norm > limit:
            part *= limit / norm
    return found
