"""Local steps of one client, rebuilt by whoever holds their scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.errors import ConfigError, JournalError
from sfl_flower.zo.accumulate import Gradient, Workspace
from sfl_flower.zo.keys import Key
from sfl_flower.zo.optimizers import OptimizerSpec, Step

__all__ = ["Walk", "update"]

F32 = NDArray[np.float32]


def update(
    theta: F32,
    slots: Mapping[str, F32],
    step: Step,
    run_key: bytes,
    law: str,
    keys: Sequence[Key],
    coefficients: NDArray[np.float32],
    work: Workspace,
) -> None:
    """Take one optimiser step along ``Σ c_i u_i``, in place and block by block.

    Parameters
    ----------
    theta
        Flat parameters.
    slots
        Optimiser state by name, each like ``theta``.
    step
        The step's rule and constants.
    run_key, law, keys
        Of the directions.
    coefficients
        As many as keys.
    work
        Made for the size of ``theta``.
    """
    size = len(theta)
    scaled = step.coefficients(coefficients.reshape(-1))
    gradient = Gradient(run_key, keys, scaled, size, law, work)
    for low in range(0, size, work.block):
        here = slice(low, min(size, low + work.block))
        g, scratch = work.gradient[: here.stop - low], work.first[: here.stop - low]
        gradient.write(g, low)
        block = {name: slot[here] for name, slot in slots.items()}
        step.apply(theta[here], block, g, scratch)


class Walk:
    """A client's parameters as it takes local steps from its scalars.

    Two walks that took the same steps from the same start are equal to the bit, whatever the
    machine: a client whose optimiser is one of `OPTIMIZERS` can send scalars instead of weights.

    Parameters
    ----------
    theta
        Flat float32 vector on the CPU, updated in place.
    spec
        The optimiser.
    run_key, law
        Of the directions.
    state
        What `state` gave, to go on with that optimiser state; it starts anew without.

    Raises
    ------
    ConfigError
        If ``theta`` is not a flat float32 vector on the CPU.
    JournalError
        If the state does not fit the optimiser or the vector.
    """

    def __init__(
        self,
        theta: Tensor,
        spec: OptimizerSpec,
        run_key: bytes,
        law: str,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        if theta.dtype != torch.float32 or theta.dim() != 1 or theta.device.type != "cpu":
            raise ConfigError(
                f"A walk needs a flat float32 vector on the CPU; it got {theta.dtype} of shape "
                f"{tuple(theta.shape)} on {theta.device}."
            )
        self._theta = theta.detach().numpy()
        self._spec, self._run_key, self._law = spec, run_key, law
        self._work: Workspace | None = None
        if state is None:
            self._slots = {name: np.zeros_like(self._theta) for name in spec.slots}
            self._powers = (1.0, 1.0)
            return
        wanted = {**{f"slot.{name}": self._theta.shape for name in spec.slots}, "powers": (2,)}
        if {name: array.shape for name, array in state.items()} != wanted:
            raise JournalError(
                f"The optimiser state holds {sorted(state)}, which does not fit '{spec.name}' over "
                f"{self._theta.size} parameters; start it anew."
            )
        self._slots = {name: np.array(state[f"slot.{name}"], np.float32) for name in spec.slots}
        self._powers = (float(state["powers"][0]), float(state["powers"][1]))

    def step(self, keys: Sequence[Key], coefficients: NDArray[np.float32], lr: float) -> None:
        """Take one step along ``Σ c_i u(key_i)``.

        Parameters
        ----------
        keys
            Of the directions.
        coefficients
            float32, as many as keys; every mean and ``1 / (P μ)`` is already in them.
        lr
            Learning rate.
        """
        if self._work is None:
            self._work = Workspace(len(self._theta))
        spec = self._spec
        self._powers = (self._powers[0] * spec.beta1, self._powers[1] * spec.beta2)
        rule = Step(spec, lr, self._powers)
        update(
            self._theta, self._slots, rule, self._run_key, self._law, keys, coefficients, self._work
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the optimiser state as arrays (no copies), empty for plain SGD."""
        if not self._slots:
            return {}
        slots: dict[str, NDArray[Any]] = {f"slot.{k}": v for k, v in self._slots.items()}
        return {**slots, "powers": np.array(self._powers, dtype=np.float64)}
