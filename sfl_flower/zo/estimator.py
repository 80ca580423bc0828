"""What an estimator is: how the scalars of a mini-batch come from forwards along directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sfl_flower.zo.beside import Beside
from sfl_flower.zo.directions import Direction
from sfl_flower.zo.vector import ParameterVector

__all__ = ["Estimator", "Scalars", "Target", "Together"]

Scalars = Tensor
"""What one direction gives: a scalar of the whole, and maybe one of each channel; float64, where
the module computes, for the host reads those of a mini-batch at once."""


@dataclass(frozen=True)
class Together:
    """How several probes run in one forward.

    Attributes
    ----------
    beside : Beside
        The layers that are probed beside their products.
    run : callable
        Runs the module on inputs.
    x : Tensor
        Inputs of the mini-batch, shape [n, ...].
    read : callable
        Makes of the module's output at one probe what `Target.evaluate` gives.
    most : int
        Probes of a forward, at least 1.
    """

    beside: Beside
    run: Callable[[Tensor], Tensor]
    x: Tensor
    read: Callable[[Tensor], Tensor]
    most: int


@dataclass(frozen=True)
class Target:
    """What scalars tell of: a local loss, or the surrogate ``<λ, f_c>`` of HO-SFL.

    Attributes
    ----------
    evaluate : callable
        Runs the mini-batch at the parameters of the moment: the loss, one element, or z.
    difference : callable
        Of two outputs, how much more the first one gives, linear in (first - second): float64, of
        the whole, shape [1], or of whole and channels, shape [1 + C].
    given : Tensor or None
        The output at the anchor, where the caller has it already.
    together : Together or None
        How several probes run in one forward; None where each has its own, at weights written for
        it.
    parts : int
        Scalars of a difference: 1, or 1 + C.
    """

    evaluate: Callable[[], Tensor]
    difference: Callable[[Tensor, Tensor], Scalars]
    given: Tensor | None = None
    together: Together | None = None
    parts: int = 1

    def groups(self, directions: Sequence[Direction]) -> Iterator[Sequence[Direction]]:
        """Yield the directions of each forward; one without factors has its own."""
        most = 1 if self.together is None else self.together.most
        group: list[Direction] = []
        for direction in directions:
            alone = most == 1 or direction.factors() is None
            if group and (alone or len(group) == most):
                yield group
                group = []
            if alone:
                yield [direction]
            else:
                group.append(direction)
        if group:
            yield group

    def outputs(
        self, vector: ParameterVector, directions: Sequence[Direction], scale: float
    ) -> list[Tensor]:
        """Return the output at ``anchor + scale * u`` for each direction of a group."""
        together = self.together
        if together is None or directions[0].factors() is None:
            (direction,) = directions
            with vector.probe(direction, scale):
                return [self.evaluate()]
        x, count = together.x, len(directions)
        with together.beside.probes(directions, scale):
            output = together.run(x.repeat(count, *(1,) * (x.dim() - 1)))
        return [together.read(part) for part in output.chunk(count)]

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
    sides : tuple of float
        Where outputs along a direction are compared, in μ; none where it does not compare them.
    """

    name: ClassVar[str]
    forwards: ClassVar[int]
    anchored: ClassVar[bool]
    sides: ClassVar[tuple[float, ...]] = ()

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
    ) -> list[Scalars]:
        """Return the scalars of each direction; the parameters are afterwards as before.

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
