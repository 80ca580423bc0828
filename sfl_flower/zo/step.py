"""What an optimiser step is: one rounded float32 operation at a time, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sfl_flower.zo.law import F32
from sfl_flower.zo.optimizers import OptimizerSpec

__all__ = ["Step"]


class Step(ABC):
    """One step of an optimiser; every constant is rounded to float32 once.

    A rule is a class in a file of its own, a line of `sfl_flower.zo.rules`, and a name with its
    state in `sfl_flower.zo.optimizers`.

    Parameters
    ----------
    spec : OptimizerSpec
        The optimiser.
    lr : float
        Learning rate of this entry.
    powers : tuple of float
        ``(β1**t, β2**t)`` for this step's count ``t``, kept as running float64 products.
    """

    def __init__(self, spec: OptimizerSpec, lr: float, powers: tuple[float, float]) -> None:
        self.spec, self.lr, self.powers = spec, lr, powers
        self.rate = np.float32(lr)

    def begin(self, slots: Mapping[str, F32]) -> None:  # noqa: B027  most need no look ahead
        """Look at the whole state before the first block.

        Parameters
        ----------
        slots : mapping of str to numpy.ndarray
            State vectors by name, float32.
        """

    def coefficients(self, values: NDArray[np.float32]) -> list[float]:
        """Return the coefficients of the sum that `apply` expects, in float64."""
        return [float(value) for value in values.tolist()]

    @abstractmethod
    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block of ``theta`` and of each slot in place; ``g`` is used up.

        Parameters
        ----------
        theta, g, scratch : numpy.ndarray
            float32 vectors of one length; ``g`` sums the directions with `coefficients`.
        slots : dict of str to numpy.ndarray
            State blocks by name, of the same length.
        """

    def decay(self, theta: F32, g: F32, scratch: F32, factor: float = 1.0) -> None:
        """Add the weight decay to a block's gradient: ``g += (factor · wd) · θ``."""
        constant = np.float32(self.spec.weight_decay * factor)
        if constant != 0.0:
            np.multiply(theta, constant, out=scratch)
            np.add(g, scratch, out=g)

    def move(self, theta: F32, update: F32, scratch: F32) -> None:
        """Go against an update: ``θ -= rate · update``."""
        np.multiply(update, self.rate, out=scratch)
        np.subtract(theta, scratch, out=theta)
