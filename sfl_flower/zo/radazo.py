"""R-AdaZO (arXiv 2502.01014): the second moment of the momentum, not of the noisy estimate."""

from __future__ import annotations

import math

import numpy as np

from sfl_flower.zo.law import F32
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.step import Step

__all__ = ["RAdaZO"]


class RAdaZO(Step):
    """``m = β1 m + (1 - β1) g;  m̂ = m / (1 - β1ᵗ);  v = β2 v + (1 - β2) m̂²``, then Adam's step.

    The square of a zeroth-order estimate is mostly the noise of its directions, the same for every
    parameter; the momentum has averaged some of it away.  The paper squares m as it is and corrects
    no bias, so that its first step is ``1 / √(1 - β2)`` times the rate; here both moments are
    corrected as Adam's are, and the first step moves every parameter by the rate.  Weight decay is
    added to g.
    """

    def __init__(self, spec: OptimizerSpec, lr: float, powers: tuple[float, float]) -> None:
        super().__init__(spec, lr, powers)
        self._unbiased = np.float32(1.0 / (1.0 - powers[0]))
        self._root = np.float32(math.sqrt(1.0 - powers[1]))

    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block, see `Step.apply`."""
        spec, m, v = self.spec, slots["m"], slots["v"]
        self.decay(theta, g, scratch)
        np.multiply(g, np.float32(1.0 - spec.beta1), out=g)
        np.multiply(m, np.float32(spec.beta1), out=m)
        np.add(m, g, out=m)
        np.multiply(m, self._unbiased, out=g)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, np.float32(1.0 - spec.beta2), out=scratch)
        np.multiply(v, np.float32(spec.beta2), out=v)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=scratch)
        np.divide(scratch, self._root, out=scratch)
        np.add(scratch, np.float32(spec.eps), out=scratch)
        np.divide(g, scratch, out=g)
        self.move(theta, g, scratch)
