"""Optimisers that replay to the same bits: one rounded float32 operation at a time."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import ConfigError

__all__ = ["OPTIMIZERS", "OptimizerSpec", "Step"]

F32 = NDArray[np.float32]
_SLOTS = {"sgd": (), "momentum": ("momentum",), "adam": ("m", "v"), "adamw": ("m", "v")}
OPTIMIZERS: tuple[str, ...] = tuple(_SLOTS)
"""Names of the optimisers. The index in this tuple is the wire tag."""

_PACKED = struct.Struct("<B5d")


@dataclass(frozen=True)
class OptimizerSpec:
    """Which optimiser the client parameters go through; the learning rate is in each entry.

    Attributes
    ----------
    name : str
        ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``, with torch's update rules.
    momentum, beta1, beta2 : float
        In ``[0, 1)``.
    eps : float
        At least 1e-30.
    weight_decay : float
        In ``0 .. 1e3``; added to the gradient, for ``adamw`` decoupled from it.

    Raises
    ------
    ConfigError
        If a value is outside its range.
    """

    name: str = "sgd"
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _SLOTS:
            raise ConfigError(
                f"Unknown client optimizer {self.name!r}; use one of {', '.join(OPTIMIZERS)}."
            )
        for field in ("momentum", "beta1", "beta2"):
            self._check(field, "0 <= value < 1", 0.0 <= getattr(self, field) < 1.0)
        self._check("eps", "value >= 1e-30", self.eps >= 1e-30)
        self._check("weight_decay", "0 <= value <= 1e3", 0.0 <= self.weight_decay <= 1e3)

    def _check(self, field: str, legal: str, ok: bool) -> None:
        if not (ok and math.isfinite(getattr(self, field))):
            raise ConfigError(
                f"Optimizer {field} is {getattr(self, field)!r}; legal: {legal}, finite."
            )

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state vectors, each as long as the parameters."""
        return _SLOTS[self.name]

    def encode(self) -> bytes:
        """Return the 41 bytes that stand in a journal's header."""
        values = (self.momentum, self.beta1, self.beta2, self.eps, self.weight_decay)
        return _PACKED.pack(OPTIMIZERS.index(self.name), *values)

    @classmethod
    def decode(cls, data: bytes) -> OptimizerSpec:
        """Read what `encode` wrote.

        Raises
        ------
        ConfigError
            If the tag is unknown or a value is out of range.
        """
        tag, *values = _PACKED.unpack(data)
        if tag >= len(OPTIMIZERS):
            raise ConfigError(f"Unknown optimizer tag {tag}; legal: 0..{len(OPTIMIZERS) - 1}.")
        return cls(OPTIMIZERS[tag], *values)


class Step:
    """One optimiser step, applied block by block; every constant is rounded to float32 once.

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
        self._spec = spec
        adam = spec.name in ("adam", "adamw")
        self._rate = np.float32(lr / (1.0 - powers[0]) if adam else lr)
        self._root = np.float32(math.sqrt(1.0 - powers[1]) if adam else 1.0)
        self._eps = np.float32(spec.eps)
        self._folded = lr if spec.name == "sgd" else 1.0
        coupled = 0.0 if spec.name == "adamw" else spec.weight_decay * self._folded
        self._coupled = np.float32(coupled)
        self._keep = np.float32(1.0 - lr * spec.weight_decay if spec.name == "adamw" else 1.0)

    def coefficients(self, values: NDArray[np.float32]) -> list[float]:
        """Return the coefficients of the sum that `apply` expects.

        Plain SGD has its learning rate folded into them (in float64), which saves a pass over
        the parameters.
        """
        return [self._folded * value for value in values.tolist()]

    def apply(self, theta: F32, slots: dict[str, F32], g: F32, scratch: F32) -> None:
        """Update a block of ``theta`` and of each slot in place; ``g`` is used up.

        Parameters
        ----------
        theta, g, scratch : numpy.ndarray
            float32 vectors of one length; ``g`` sums the directions with `coefficients`.
        slots : dict of str to numpy.ndarray
            State blocks by name, of the same length.
        """
        spec = self._spec
        if self._coupled != 0.0:
            np.multiply(theta, self._coupled, out=scratch)
            np.add(g, scratch, out=g)
        if spec.name == "sgd":
            np.subtract(theta, g, out=theta)
            return
        if spec.name == "momentum":
            update = slots["momentum"]
            np.multiply(update, np.float32(spec.momentum), out=update)
            np.add(update, g, out=update)
        else:
            update = self._adam(slots["m"], slots["v"], g, scratch)
            if self._keep != 1.0:
                np.multiply(theta, self._keep, out=theta)
        np.multiply(update, self._rate, out=scratch)
        np.subtract(theta, scratch, out=theta)

    def _adam(self, m: F32, v: F32, g: F32, scratch: F32) -> F32:
        spec = self._spec
        np.multiply(g, np.float32(1.0 - spec.beta1), out=scratch)
        np.multiply(m, np.float32(spec.beta1), out=m)
        np.add(m, scratch, out=m)
        np.multiply(g, g, out=g)
        np.multiply(g, np.float32(1.0 - spec.beta2), out=g)
        np.multiply(v, np.float32(spec.beta2), out=v)
        np.add(v, g, out=v)
        np.sqrt(v, out=g)
        np.divide(g, self._root, out=g)
        np.add(g, self._eps, out=g)
        np.divide(m, g, out=g)
        return g
