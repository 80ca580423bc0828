"""HiSo (arXiv 2506.02370): a diagonal of curvature, learned from the scalars that everyone has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sfl_flower.zo.law import F32
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.step import Step
from sfl_flower.zo.sums import fixed_sum

__all__ = ["HiSo"]

_SMALLEST = 1e-30
"""Mean of h below which it tells nothing: its reciprocal would leave float32."""


class HiSo(Step):
    """``θ -= lr · g / D`` with ``D = β2ᵗ + (1 - β2ᵗ) h / h̄``, then ``h = β2 h + (1 - β2) g²``.

    h, one number a parameter, is a running mean of the squared estimates, the paper's diagonal H,
    and h̄ is its mean over the parameters.  A step divides by the D of the rounds before, so that
    it stays linear in its scalars.  The paper starts at H = 1, which supposes estimates of that
    size, and probes along ``D^(-1/2) u``; here D is relative to its mean, 1 at the first step and
    1 on average ever after, so that the rate is that of SGD, and probes stay as they are, which
    has the same mean step.  Weight decay is added to g.
    """

    def __init__(self, spec: OptimizerSpec, lr: float, powers: tuple[float, float]) -> None:
        super().__init__(spec, lr, powers)
        self._least, self._slope = np.float32(1.0), np.float32(0.0)

    def begin(self, slots: Mapping[str, F32]) -> None:
        """Take the mean of h, the same to the bit on every machine."""
        h = slots["h"]
        mean = fixed_sum(h) / h.size
        if mean > _SMALLEST:
            self._least = np.float32(self.powers[1])
            self._slope = np.float32((1.0 - self.powers[1]) / mean)

    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block, see `Step.apply`."""
        spec, h = self.spec, slots["h"]
        self.decay(theta, g, scratch)
        np.multiply(h, self._slope, out=scratch)
        np.add(scratch, self._least, out=scratch)
        np.divide(g, scratch, out=scratch)
        np.multiply(scratch, self.rate, out=scratch)
        np.subtract(theta, scratch, out=theta)
        np.multiply(g, g, out=g)
        np.multiply(g, np.float32(1.0 - spec.beta2), out=g)
        np.multiply(h, np.float32(spec.beta2), out=h)
        np.add(h, g, out=h)
