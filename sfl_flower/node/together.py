"""Several probes of a client in one forward, where its module lets them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor, nn

from sfl_flower.node.node import Node
from sfl_flower.training.modes import kept_buffers
from sfl_flower.zo import ParameterVector, Probing
from sfl_flower.zo.beside import Beside
from sfl_flower.zo.estimator import Together

__all__ = ["together"]


def together(
    node: Node,
    what: Hashable,
    module: nn.Module,
    vector: ParameterVector,
    probing: Probing,
    run: Callable[[Tensor], Tensor],
    read: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Together | None:
    """Return how probes of a mini-batch run in one forward; None where each has its own.

    Parameters
    ----------
    node : Node
        The client.
    what : hashable
        Names the module; whether it can be probed so is found once a process.
    module, vector : nn.Module, ParameterVector
        What runs, and its trained parameters.
    probing : Probing
        How many probes a forward may hold.
    run, read, x : callable, callable, Tensor
        As in `Together`.
    """
    if probing.stack == 1:
        return None
    with kept_buffers(module):
        beside = node.memo(("beside", what), lambda: Beside.open(module, vector, run, x))
    return None if beside is None else Together(beside, run, x, read, probing.stack)
