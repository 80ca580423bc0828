"""Names and settings of the optimisers that replay to the same bits; a rule has its own file."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from sfl_flower.errors import ConfigError

__all__ = ["OPTIMIZERS", "OptimizerSpec"]

_SLOTS: Mapping[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("momentum",),
    "adam": ("m", "v"),
    "adamw": ("m", "v"),
    "radazo": ("m", "v"),
    "hiso": ("h",),
}
OPTIMIZERS: tuple[str, ...] = tuple(_SLOTS)
"""Names of the optimisers. The index in this tuple is the wire tag."""

_PACKED = struct.Struct("<B5d")


@dataclass(frozen=True)
class OptimizerSpec:
    """Which optimiser the client parameters go through; the learning rate is in each entry.

    Attributes
    ----------
    name : str
        ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``, with torch's update rules, or
        ``"radazo"`` or ``"hiso"``, made for zeroth order.
    momentum, beta1, beta2 : float
        In ``[0, 1)``.
    eps : float
        At least 1e-30.
    weight_decay : float
        In ``0 .. 1e3``; added to the gradient, for ``adamw`` decoupled from it.
    cone : float
        In ``0 .. 0.999``: cosine of the angle between directions and the momentum; 0: directions
        know nothing of it (`sfl_flower.zo.cone`).

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
    cone: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _SLOTS:
            raise ConfigError(
                f"Unknown client optimizer {self.name!r}; use one of {', '.join(OPTIMIZERS)}."
            )
        for field in ("momentum", "beta1", "beta2"):
            self._check(field, "0 <= value < 1", 0.0 <= getattr(self, field) < 1.0)
        self._check("eps", "value >= 1e-30", self.eps >= 1e-30)
        self._check("weight_decay", "0 <= value <= 1e3", 0.0 <= self.weight_decay <= 1e3)
        self._check("cone", "0 <= value <= 0.999", 0.0 <= self.cone <= 0.999)

    def _check(self, field: str, legal: str, ok: bool) -> None:
        if not (ok and math.isfinite(getattr(self, field))):
            raise ConfigError(
                f"Optimizer {field} is {getattr(self, field)!r}; legal: {legal}, finite."
            )

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state vectors, each as long as the parameters."""
        own = _SLOTS[self.name]
        return (*own, "momentum") if self.keeps_axis else own

    @property
    def axis(self) -> str:
        """Name of the state vector that is the momentum, the axis of the cone."""
        return "m" if "m" in _SLOTS[self.name] else "momentum"

    @property
    def keeps_axis(self) -> bool:
        """Whether the optimiser has no momentum of its own, and keeps one for the cone."""
        return self.cone > 0.0 and self.axis not in _SLOTS[self.name]

    def encode(self) -> bytes:
        """Return the 41 bytes that stand in a journal's header; the cone has a place of its own."""
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
