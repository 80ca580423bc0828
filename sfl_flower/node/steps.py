"""Weights of a client whose round takes several messages, one a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from sfl_flower.errors import TrainingError
from sfl_flower.node.node import Node
from sfl_flower.node.optimizer import OPTIMIZER
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.wire import unpack_state

__all__ = ["StepLike", "forget", "met_before", "remember", "restore"]

_WEIGHTS, _AT = "weights", "step"


class StepLike(Protocol):
    """A request that ends one step of a round and begins the next; step 0 brings weights."""

    @property
    def round(self) -> int:
        """The round."""

    @property
    def step(self) -> int:
        """The step to begin."""

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Packed client half at step 0."""

    @property
    def keep_state(self) -> bool:
        """Whether the optimiser's state of the last round is taken up."""


def restore(node: Node, request: StepLike) -> None:
    """Load the request's weights into the client half, or those kept since the last step.

    Raises
    ------
    TrainingError
        If the client is not where the request goes on from.
    """
    half = node.half
    half.holds = ""
    packed: Mapping[str, np.ndarray] | None = request.weights
    if request.step > 0:
        at = node.store.get_text(_AT)
        if (at.get("round"), at.get("step")) != (request.round, request.step - 1):
            raise TrainingError(
                f"The client stands at step {at.get('step')} of round {at.get('round')} and cannot "
                f"go on with step {request.step} of round {request.round}."
            )
        packed = node.store.get(_WEIGHTS)
    elif not request.keep_state:
        node.store.drop(OPTIMIZER)
    if packed is None:
        raise TrainingError("The client lost its weights within the round; it joins the next one.")
    load_travelling(half.module, unpack_state(packed, travelling_state(half.module)))


def remember(
    node: Node, request: StepLike, packed: Mapping[str, np.ndarray], batch: str = ""
) -> None:
    """Keep the weights for the next step, and the digest of a mini-batch that it meets again."""
    node.store.put(_WEIGHTS, packed)
    node.store.put_text(_AT, {"round": request.round, "step": request.step, "batch": batch})


def met_before(node: Node) -> str:
    """Return the digest of the mini-batch of the step before."""
    return str(node.store.get_text(_AT).get("batch", ""))


def forget(node: Node, keep_state: bool) -> None:
    """Drop what only steps within a round need."""
    node.store.drop(_WEIGHTS)
    node.store.drop(_AT)
    if not keep_state:
        node.store.drop(OPTIMIZER)
