"""The rules of the optimisers by name. A new one is a file with a `Step`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from sfl_flower.zo.adam import Adam, AdamW
from sfl_flower.zo.hiso import HiSo
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.radazo import RAdaZO
from sfl_flower.zo.sgd import SGD, Momentum
from sfl_flower.zo.step import Step

__all__ = ["make_step"]

_RULES: Mapping[str, type[Step]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "radazo": RAdaZO,
    "hiso": HiSo,
}


def make_step(spec: OptimizerSpec, lr: float, powers: tuple[float, float]) -> Step:
    """Return a step of an optimiser, see `Step`."""
    return _RULES[spec.name](spec, lr, powers)
