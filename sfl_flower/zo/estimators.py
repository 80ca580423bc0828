"""The estimators by name. A new one is a file with an `Estimator`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from sfl_flower.zo.differences import Central, Forward
from sfl_flower.zo.estimator import Estimator
from sfl_flower.zo.jvp import JVP

__all__ = ["ESTIMATORS"]

_ALL: tuple[Estimator, ...] = (
    Forward(),
    Central(),
    JVP(),
)
ESTIMATORS: Mapping[str, Estimator] = {estimator.name: estimator for estimator in _ALL}
