"""Stochastic gradient descent, plain and with momentum, by torch's rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfl_flower.zo.law import F32
from sfl_flower.zo.step import Step

__all__ = ["SGD", "Momentum"]


class SGD(Step):
    """``θ -= lr · (g + wd · θ)``.

    The learning rate is folded into the coefficients (in float64), which saves a pass over the
    parameters.
    """

    def coefficients(self, values: NDArray[np.float32]) -> list[float]:
        """Return ``lr · c``."""
        return [self.lr * value for value in values.tolist()]

    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block, see `Step.apply`."""
        self.decay(theta, g, scratch, self.lr)
        np.subtract(theta, g, out=theta)


class Momentum(Step):
    """``m = β m + g + wd · θ;  θ -= lr · m``."""

    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block, see `Step.apply`."""
        self.decay(theta, g, scratch)
        update = slots["momentum"]
        np.multiply(update, np.float32(self.spec.momentum), out=update)
        np.add(update, g, out=update)
        self.move(theta, update, scratch)
