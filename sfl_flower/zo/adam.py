"""Adam and AdamW, by torch's rules."""

from __future__ import annotations

import math

import numpy as np

from sfl_flower.zo.law import F32
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.step import Step

__all__ = ["Adam", "AdamW"]


class Adam(Step):
    """``m`` and ``v`` are running means of g and g²; weight decay is added to g."""

    def __init__(self, spec: OptimizerSpec, lr: float, powers: tuple[float, float]) -> None:
        super().__init__(spec, lr, powers)
        self.rate = np.float32(lr / (1.0 - powers[0]))
        self._root = np.float32(math.sqrt(1.0 - powers[1]))

    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block, see `Step.apply`."""
        self.decay(theta, g, scratch)
        self.move(theta, self._direction(slots["m"], slots["v"], g, scratch), scratch)

    def _direction(self, m: F32, v: F32, g: F32, scratch: F32) -> F32:
        spec = self.spec
        np.multiply(g, np.float32(1.0 - spec.beta1), out=scratch)
        np.multiply(m, np.float32(spec.beta1), out=m)
        np.add(m, scratch, out=m)
        np.multiply(g, g, out=g)
        np.multiply(g, np.float32(1.0 - spec.beta2), out=g)
        np.multiply(v, np.float32(spec.beta2), out=v)
        np.add(v, g, out=v)
        np.sqrt(v, out=g)
        np.divide(g, self._root, out=g)
        np.add(g, np.float32(spec.eps), out=g)
        np.divide(m, g, out=g)
        return g


class AdamW(Adam):
    """Adam whose weight decay acts on the parameters: ``θ = (1 - lr · wd) θ`` first."""

    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block, see `Step.apply`."""
        update = self._direction(slots["m"], slots["v"], g, scratch)
        keep = np.float32(1.0 - self.lr * self.spec.weight_decay)
        if keep != 1.0:
            np.multiply(theta, keep, out=theta)
        self.move(theta, update, scratch)
