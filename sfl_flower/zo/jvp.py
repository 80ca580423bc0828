"""Exact directional derivatives, by forward-mode differentiation in place of a difference.

Beside each value of the forward runs its derivative along the direction (a dual number), so one
pass gives ``∂L/∂u_p`` or ``<λ, ∂f_c/∂u_p>``: no graph, no μ, no cancellation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.hooks import RemovableHandle

from sfl_flower.errors import ConfigError
from sfl_flower.zo.directions import Direction, Directions
from sfl_flower.zo.estimator import Estimator, Scalars, Target
from sfl_flower.zo.keys import RUN_KEY_BYTES, Key
from sfl_flower.zo.vector import ParameterVector

__all__ = ["JVP", "derivative"]


def derivative(
    evaluate: Callable[[], Tensor], parameters: Sequence[Tensor], along: Sequence[Tensor]
) -> Tensor | None:
    """Return the derivative of an output along a direction of the parameters.

    Parameters
    ----------
    evaluate : callable
        Computes the output from the parameters.
    parameters : sequence of Tensor
        What moves; their values are as before afterwards.
    along : sequence of Tensor
        The direction, shapes and dtypes of the parameters.

    Returns
    -------
    Tensor or None
        Shape of the output; None where nothing of the direction arrives there.
    """
    with torch.no_grad(), forward_ad.dual_level():
        for parameter, tangent in zip(parameters, along, strict=True):
            # In place: a module that keeps its parameters in a list of its own sees them as well.
            parameter.copy_(forward_ad.make_dual(parameter.detach().clone(), tangent))
        found: Tensor | None = forward_ad.unpack_dual(evaluate()).tangent
        return found


class JVP(Estimator):
    """The derivative itself; a scalar needs no μ.

    Of a loss ``v_p = <∇L(θ), u_p>``, of a surrogate ``v_p = <λ, J_{f_c}(θ) u_p>``.
    """

    name: ClassVar[str] = "jvp"
    forwards: ClassVar[int] = 1
    anchored: ClassVar[bool] = False

    @property
    def cost(self) -> float:
        """Three forwards: the derivative of a product of values and weights is two more."""
        return 3.0

    def unit(self, mu: float) -> float:
        """Return 1: a scalar is a derivative already."""
        return 1.0

    def scalars(
        self, target: Target, vector: ParameterVector, directions: Sequence[Direction], mu: float
    ) -> list[Scalars]:
        """Return the derivative along each direction."""
        found = []
        for direction in directions:
            tangent = _tangent(target.evaluate, vector, direction)
            if tangent is None:  # the batch does not depend on what moves
                found.append(vector.anchor.new_zeros(target.parts, dtype=torch.float64))
            else:
                found.append(target.difference(tangent, torch.zeros_like(tangent)))
        return found

    def check(
        self, evaluate: Callable[[], Tensor], module: nn.Module, vector: ParameterVector
    ) -> None:
        """Refuse a module with an operation that has no forward-mode derivative."""
        direction = Directions(bytes(RUN_KEY_BYTES), "rademacher", vector.shapes).of(Key(0))
        with _watched(module) as running:
            try:
                tangent = _tangent(evaluate, vector, direction)
            except RuntimeError as error:
                why = str(error).strip().splitlines()[0].rstrip(".")
                raise ConfigError(
                    f"estimator=jvp cannot differentiate {running.place()}: {why}. Use "
                    "estimator=central or forward, which run any operation, or another layer there "
                    "(attention of transformers has a forward mode with task.attention=eager)."
                ) from error
        if tangent is None:
            raise ConfigError(
                "estimator=jvp finds no derivative at the output of what clients train: something "
                "on the way detaches it. Use estimator=central or forward, or remove the detach()."
            )


def _tangent(
    evaluate: Callable[[], Tensor], vector: ParameterVector, direction: Direction
) -> Tensor | None:
    along = list(vector.named(direction.on(vector.anchor.device)).values())
    with vector.probe(direction, 0.0, at_once=True):  # memory to write in; the anchor stays
        return derivative(evaluate, vector.parameters, along)


class _Running:
    """The layers that are running, from the outermost in, and the last one that is done."""

    def __init__(self) -> None:
        self._inside: list[str] = []
        self._last = ""

    def place(self) -> str:
        """Say where a forward stopped."""
        if self._inside:
            return self._inside[-1]
        return f"an operation after {self._last}" if self._last else "what clients train"

    def enter(self, layer: str) -> None:
        self._inside.append(layer)

    def leave(self) -> None:
        self._last = self._inside.pop()


@contextmanager
def _watched(module: nn.Module) -> Iterator[_Running]:
    running, hooks = _Running(), []
    for name, layer in module.named_modules():
        if name:
            hooks += _watch(layer, f"layer '{name}' ({type(layer).__name__})", running)
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def _watch(layer: nn.Module, said: str, running: _Running) -> list[RemovableHandle]:
    before = layer.register_forward_pre_hook(lambda module, given: running.enter(said))
    after = layer.register_forward_hook(lambda module, given, output: running.leave())
    return [before, after]
