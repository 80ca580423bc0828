"""Flat parameters that take optimiser steps along sums of directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.errors import ConfigError, JournalError
from sfl_flower.zo.accumulate import Gradient, Workspace
from sfl_flower.zo.cone import cone_of, in_cone
from sfl_flower.zo.directions import Direction, Directions
from sfl_flower.zo.guide import Guide
from sfl_flower.zo.keys import Key
from sfl_flower.zo.law import F32, Shapes
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.rules import make_step

__all__ = ["Walk"]


class Walk:
    """Parameters and optimiser state that are moved by keys and coefficients alone.

    Two walks that took the same steps from the same start are equal to the bit, whatever the
    machine: a client whose optimiser is one of `OPTIMIZERS` can send scalars instead of weights.

    Parameters
    ----------
    theta : Tensor
        Flat float32 vector, updated in place. The steps are taken on the CPU, where they have the
        same bits on every machine; a vector on another device gets their result.
    spec : OptimizerSpec
        The optimiser.
    directions : Directions
        Those of the run, over the tensors that the vector holds.
    state : mapping of str to numpy.ndarray, optional
        What `state` gave, to go on with that optimiser state; it starts anew without.

    Attributes
    ----------
    theta : Tensor
        As given.
    slots : dict of str to numpy.ndarray
        Optimiser state by name, each float32 like ``theta``.
    powers : tuple of float
        ``(β1**t, β2**t)`` as running float64 products, never ``pow``.

    Raises
    ------
    ConfigError
        If ``theta`` is not a flat float32 vector, or the directions are of another size.
    JournalError
        If the state does not fit the optimiser or the vector.
    """

    def __init__(
        self,
        theta: Tensor,
        spec: OptimizerSpec,
        directions: Directions,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        if theta.dtype != torch.float32 or theta.dim() != 1:
            raise ConfigError(
                f"A walk needs a flat float32 vector; it got {theta.dtype} of shape "
                f"{tuple(theta.shape)}."
            )
        if theta.numel() != directions.size:
            raise ConfigError(
                f"A walk of {theta.numel()} parameters got directions of {directions.size} "
                "elements; make them with ParameterVector.directions."
            )
        self.theta = theta.detach()
        self._spec, self._directions = spec, directions
        self._flat: F32 = self.theta.cpu().numpy()  # of a vector on the CPU, its own memory
        self._work: Workspace | None = None
        if state is None:
            self.slots = {name: np.zeros_like(self._flat) for name in spec.slots}
            self.powers = (1.0, 1.0)
            return
        wanted = {**{f"slot.{name}": self._flat.shape for name in spec.slots}, "powers": (2,)}
        if {name: array.shape for name, array in state.items()} != wanted:
            raise JournalError(
                f"The optimiser state holds {sorted(state)}, which does not fit '{spec.name}' over "
                f"{self._flat.size} parameters; start it anew."
            )
        self.slots = {name: np.array(state[f"slot.{name}"], np.float32) for name in spec.slots}
        self.powers = (float(state["powers"][0]), float(state["powers"][1]))

    @property
    def parts(self) -> int:
        """Coefficients of a direction."""
        return self._directions.parts

    @property
    def shapes(self) -> Shapes:
        """Shapes of the tensors that the vector holds."""
        return self._directions.shapes

    def step(
        self,
        keys: Sequence[Key],
        coefficients: NDArray[np.float32],
        lr: float,
        guide: Guide | None = None,
        seal: bytes = b"",
    ) -> None:
        """Take one step along ``Σ c_i u(key_i)``, in place and block by block.

        Parameters
        ----------
        keys : sequence of Key
            Of the directions.
        coefficients : numpy.ndarray
            float32, as many as keys; every mean and ``1 / (P μ)`` is already in them.
        lr : float
            Learning rate.
        guide : Guide, optional
            One more term of the sum, the last.
        seal : bytes
            That of the round, without which its directions are not known; or none.
        """
        if self._work is None:
            self._work = Workspace(len(self._flat))
        work, spec, size = self._work, self._spec, len(self._flat)
        self.powers = (self.powers[0] * spec.beta1, self.powers[1] * spec.beta2)
        step = make_step(spec, lr, self.powers)
        step.begin(self.slots)
        scaled, cone = step.coefficients(coefficients.reshape(-1)), cone_of(spec, self.slots)
        if cone.fresh != 1.0:
            along, scaled = cone.along * math.fsum(scaled), [cone.fresh * c for c in scaled]
        else:
            along = 0.0
        last = None
        if guide is not None:
            last = guide.values(self.shapes, step.coefficients)
        directions = self._directions
        if seal:
            from sfl_flower.zo.seal import sealed  # few runs have any

            directions = sealed(directions, seal)
        gradient = Gradient(directions, keys, scaled, work, last)
        for low in range(0, size, work.block):
            here = slice(low, min(size, low + work.block))
            g, scratch = work.gradient[: here.stop - low], work.first[: here.stop - low]
            gradient.write(g, low)
            block = {name: slot[here] for name, slot in self.slots.items()}
            if spec.cone:
                self._lean(block[spec.axis], np.float32(along), g, scratch)
            step.apply(self._flat[here], block, g, scratch)
        self._hand_over()

    def _lean(self, axis: F32, along: np.float32, g: F32, scratch: F32) -> None:
        """Add to a block what the directions have along the momentum; keep the cone's own one."""
        if along != 0.0:
            np.multiply(axis, along, out=scratch)
            np.add(g, scratch, out=g)
        if self._spec.keeps_axis:
            np.multiply(axis, np.float32(self._spec.momentum), out=axis)
            np.add(axis, g, out=axis)

    def in_cone(self, directions: Sequence[Direction]) -> list[Direction]:
        """Return the directions as the next step has them: leaning, where there is a cone."""
        axis = self.slots[self._spec.axis] if self._spec.cone else None
        return in_cone(directions, cone_of(self._spec, self.slots), axis)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the optimiser state as arrays (no copies), empty for plain SGD."""
        if not self.slots:
            return {}
        slots: dict[str, NDArray[Any]] = {f"slot.{k}": v for k, v in self.slots.items()}
        return {**slots, "powers": np.array(self.powers, dtype=np.float64)}

    def clone(self) -> Self:
        """Return an independent copy."""
        copy = type(self)(self.theta.clone(), self._spec, self._directions)
        copy.restore(self)
        return copy

    def restore(self, other: Walk) -> None:
        """Take over parameters and optimiser state of another walk with the same optimiser."""
        self._flat[:] = other._flat
        self._hand_over()
        for name, slot in self.slots.items():
            slot[:] = other.slots[name]
        self.powers = other.powers

    def _hand_over(self) -> None:
        if self.theta.device.type != "cpu":
            self.theta.copy_(torch.from_numpy(self._flat))
