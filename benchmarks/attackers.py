"""Clients that lie: a method whose handlers answer falsely on some nodes.

Each attack keeps within what the server believes of one reply: scalars of an attacker are at most
`WITHIN` times as large as its honest ones, which `outlier_factor` lets pass in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.data import generator
from sfl_flower.errors import TrainingError
from sfl_flower.methods import METHODS, Method
from sfl_flower.node.node import Node
from sfl_flower.node.sync import journal_key
from sfl_flower.wire import StaleReply
from sfl_flower.wire.ho_sfl import ProbeRequest
from sfl_flower.zo import client_stream, run_key

__all__ = ["ATTACKS", "LEFT_OUT", "WITHIN", "attacked"]

WITHIN = 5.0
"""How many times as large as an honest answer those of an attacker are."""
Lie = Callable[[Node, Any, Any], Any]
"""Makes of a node, a request and its honest reply what the node says."""


class Flipped(Node):
    """A node that holds wrong labels, class c for the last but c."""

    def batch(self, round: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return inputs and wrong labels of a mini-batch."""
        x, y = super().batch(round, step, batch_size)
        return x, self.task.classes - 1 - y


def _times(factor: float) -> Lie:
    def lie(node: Node, request: Any, reply: Any) -> Any:
        return _with(reply, lambda scalars: factor * scalars)

    return lie


def _gaussian(node: Node, request: Any, reply: Any) -> Any:
    """Say normal numbers that have nothing to do with the data."""
    drawn = generator("gaussian attack", request.round, node.partition)
    return _with(
        reply, lambda scalars: WITHIN * _size(scalars) * drawn.standard_normal(scalars.shape)
    )


def _collude(node: Node, request: Any, reply: Any) -> Any:
    """Push the client half along one direction, the same for all attackers in all rounds."""
    if getattr(reply, "scalars", None) is None:
        return reply
    vector, probing = node.half.trained, request.probing
    shared = isinstance(request, ProbeRequest)
    key = journal_key(node) if shared else run_key("heron", node.key)
    stream = request.stream if shared else client_stream(node.partition)
    target = generator("known direction").choice([-1.0, 1.0], vector.size)
    directions = vector.directions(key, probing.law)

    def along(step: int) -> NDArray[np.float64]:
        drawn = directions.of_step(request.round, step, stream, probing.probes)
        return np.array(
            [float(target @ each.values().numpy().astype(np.float64)) for each in drawn]
        )

    def said(scalars: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.stack([along(step) for step in range(len(scalars))])
        return WITHIN * _size(scalars) * found / _size(found)

    return _with(reply, said)


def _constant(node: Node, request: Any, reply: Any) -> Any:
    """Send smashed data that are the same for every sample, as large as honest ones."""
    if not hasattr(reply, "z"):
        return reply
    return replace(reply, z=np.full_like(reply.z, _size(reply.z)))


def _honest(node: Node, request: Any, reply: Any) -> Any:
    return reply


def _silent(node: Node, request: Any, reply: Any) -> Any:
    raise TrainingError("this client is left out")


ATTACKS: Mapping[str, tuple[str, Lie]] = {
    "sign_flip": ("scalars with the other sign", _times(-1.0)),
    "little": ("half of the scalars with the other sign, each within the spread", _times(-0.5)),
    "scaled": (f"{WITHIN:g} times the scalars with the other sign", _times(-WITHIN)),
    "gaussian": (f"normal numbers of {WITHIN:g} times the size", _gaussian),
    "collude": (f"one direction for all attackers, of {WITHIN:g} times the size", _collude),
    "labels": ("wrong labels, here and in what is sent", _honest),
    "constant_z": ("smashed data that are the same for all samples", _constant),
}
"""What attackers do, in words, and as a function of what they would say."""
LEFT_OUT = "left_out"
"""In the place of an attack: these clients never answer, as if all of them had been found."""


def attacked(method: str, attack: str, clients: Collection[int]) -> Method:
    """Return a method that some clients attack.

    Parameters
    ----------
    method : str
        ``ho_sfl`` or ``heron``.
    attack : str
        One of `ATTACKS`, or `LEFT_OUT`.
    clients : collection of int
        The partitions of the attackers.
    """
    known = METHODS[method]
    handlers = {action: _lying(known, action, attack, clients) for action in known.handlers}
    return Method(known.name, known.strategy, handlers)


def _lying(
    method: Method, action: str, attack: str, clients: Collection[int]
) -> Callable[..., Any]:
    honest, kind = method.handler(action)
    lie = _silent if attack == LEFT_OUT else ATTACKS[attack][1]

    def handler(node: Node, request: Any) -> Any:
        if node.partition not in clients:
            return honest(node, request)
        reply = honest(Flipped(**vars(node)) if attack == "labels" else node, request)
        return reply if isinstance(reply, StaleReply) else lie(node, request, reply)

    handler.__annotations__ = {"node": Node, "request": kind}
    return handler


def _with(reply: Any, change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Any:
    """Return a reply whose scalars, if it has any, are others."""
    scalars = getattr(reply, "scalars", None)
    return reply if scalars is None else replace(reply, scalars=change(scalars).astype(np.float32))


def _size(values: NDArray[Any]) -> float:
    """Return the root mean square of numbers."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
