"""Estimators that compare forwards: at θ + μu and at the anchor, or on both sides of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sfl_flower.zo.directions import Direction
from sfl_flower.zo.estimator import Estimator, Scalars, Target
from sfl_flower.zo.vector import ParameterVector

__all__ = ["Central", "Forward"]


class Forward(Estimator):
    """Forward differences, the papers' choice; the error of v / μ is linear in μ.

    Of a loss ``v_p = L(θ + μ u_p) - L(θ)``, of a surrogate ``v_p = <λ, f_c(θ + μ u_p) - z>``.
    """

    name: ClassVar[str] = "forward"
    forwards: ClassVar[int] = 1
    anchored: ClassVar[bool] = True
    sides: ClassVar[tuple[float, ...]] = (1.0,)

    def scalars(
        self, target: Target, vector: ParameterVector, directions: Sequence[Direction], mu: float
    ) -> list[Scalars]:
        """Return the difference to the anchor along each direction."""
        anchor, found = target.anchor(), list[Scalars]()
        for group in target.groups(directions):
            # Nothing keeps an output: it would be there beside the next forward.
            found += [target.difference(o, anchor) for o in target.outputs(vector, group, mu)]
        return found


class Central(Estimator):
    """Central differences, two forwards a probe; the error of v / μ is quadratic in μ.

    Of a loss ``v_p = (L(θ + μ u_p) - L(θ - μ u_p)) / 2``, of a surrogate
    ``v_p = <λ, f_c(θ + μ u_p) - f_c(θ - μ u_p)> / 2``.
    """

    name: ClassVar[str] = "central"
    forwards: ClassVar[int] = 2
    anchored: ClassVar[bool] = False
    sides: ClassVar[tuple[float, ...]] = (1.0, -1.0)

    def scalars(
        self, target: Target, vector: ParameterVector, directions: Sequence[Direction], mu: float
    ) -> list[Scalars]:
        """Return half of the difference between both sides along each direction."""
        found = []
        for group in target.groups(directions):
            highs = target.outputs(vector, group, mu)
            lows = target.outputs(vector, group, -mu)
            found += [target.difference(*pair) / 2.0 for pair in zip(highs, lows, strict=True)]
            del highs, lows  # or they would be there beside the next forward
        return found
