"""What clients that are trained by backprop share: an optimiser whose state outlives a message."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from torch import nn

from sfl_flower.node.node import Node
from sfl_flower.training.device import to_array
from sfl_flower.training.optim import load_slots, make_optimizer, slots

__all__ = ["OPTIMIZER", "keep_optimizer", "open_optimizer"]

OPTIMIZER = "optimizer"
"""Name of the optimiser's state in a node's store."""


def open_optimizer(
    node: Node, parameters: Iterable[nn.Parameter], settings: str, keep: bool = True
) -> torch.optim.Optimizer:
    """Return the client's optimiser.

    Parameters
    ----------
    node : Node
        The client.
    parameters : iterable of nn.Parameter
        What is trained, in an order that never changes.
    settings : str
        The optimiser and its settings as canonical JSON.
    keep : bool
        Whether to take up the state that the node remembers.
    """
    optimizer = make_optimizer(parameters, **json.loads(settings))
    kept = node.store.get(OPTIMIZER) if keep else None
    if kept is not None:
        load_slots(optimizer, {name: torch.from_numpy(slot) for name, slot in kept.items()})
    return optimizer


def keep_optimizer(node: Node, optimizer: torch.optim.Optimizer) -> None:
    """Remember the optimiser's state on the node.

    Call it last: a state kept in a file does not go back when the round fails.
    """
    if state := slots(optimizer):
        node.store.put(OPTIMIZER, {name: to_array(slot) for name, slot in state.items()})
