"""What an estimator is: how the scalars of a mini-batch come from forwards along directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sfl_flower.zo.directions import Direction
from sfl_flower.zo.vector import ParameterVector

__all__ = ["Estimator", "Target"]


@dataclass(frozen=True)
class Target:
    """What scalars tell of: a local loss, or the surrogate ``<λ, f_c>`` of HO-SFL.

    Attributes
    ----------
    evaluate : callable
        Runs the mini-batch at the parameters of the moment: the loss, one element, or z.
    difference : callable
        Of two outputs, how much more the first one gives: a float64 number, linear in
        (first - second).
    given : Tensor or None
        The output at the anchor, where the caller has it already.
    """

    evaluate: Callable[[], Tensor]
    difference: Callable[[Tensor, Tensor], float]
    given: Tensor | None = None

    def anchor(self) -> Tensor:
        """Return the output at the anchor, by a forward of its own unless it was given."""
        return self.evaluate().detach().clone() if self.given is None else self.given


class Estimator(ABC):
    """Turns directions into scalars; a line in `sfl_flower.zo.estimators` makes one known.

    A scalar over `unit` is (an estimate of) the derivative along its direction.

    Attributes
    ----------
    name : str
        What settings and messages call it.
    forwards : int
        How often a probe runs the mini-batch.
    anchored : bool
        Whether it needs the output at the anchor besides, one forward for all probes.
    """

    name: ClassVar[str]
    forwards: ClassVar[int]
    anchored: ClassVar[bool]

    @property
    def cost(self) -> float:
        """What a probe computes, in plain forwards of the mini-batch."""
        return float(self.forwards)

    def unit(self, mu: float) -> float:
        """Return what a scalar is divided by to be a derivative: μ, or 1 where there is no μ."""
        return mu

    @abstractmethod
    def scalars(
        self,
        target: Target,
        vector: ParameterVector,
        directions: Sequence[Direction],
        mu: float,
    ) -> list[float]:
        """Return a scalar for each direction; the parameters are afterwards as before.

        Parameters
        ----------
        target : Target
            What is differentiated.
        vector : ParameterVector
            The parameters that the directions move.
        directions : sequence of Direction
            P of the vector's shapes.
        mu : float
            μ, the probe length; positive and finite.
        """

    def check(  # noqa: B027  forwards alone need nothing
        self, evaluate: Callable[[], Tensor], module: nn.Module, vector: ParameterVector
    ) -> None:
        """Refuse a module that this estimator cannot differentiate; called before training.

        Parameters
        ----------
        evaluate : callable
            Runs the module on a small mini-batch.
        module : nn.Module
            What clients probe.
        vector : ParameterVector
            Its parameters.

        Raises
        ------
        ConfigError
            With what is in the way and what to do instead.
        """
