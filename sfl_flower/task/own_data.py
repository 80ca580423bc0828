"""Training data that each node loads for itself, by Flower's `Context`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from flwr.app import Context, RecordDict

from sfl_flower.data import Samples
from sfl_flower.data.memory import held

if TYPE_CHECKING:
    from sfl_flower.task.task import SplitTask

__all__ = ["NOT_DIVIDED", "NOT_THEIR_OWN", "divided_set", "first_node", "node_key", "takes_context"]

NOT_DIVIDED = (
    "train() of task {0!r} takes the node's context, so each node's training data are its own and "
    "are not divided; set partition=local."
)
"""The refusal of a run that divides such data."""

NOT_THEIR_OWN = (
    "With partition=local each node has training data of its own, but train() of task {0!r} takes "
    "no parameter, so all clients would get the same samples, each of them all; let it take "
    "Flower's Context (train(context): context.node_config['partition-id'] says which node), or "
    "divide the set (partition=iid)."
)
"""The refusal of a run in which every client would get the whole set."""


def takes_context(function: Callable[..., Any]) -> bool:
    """Tell whether a function has a parameter without a default, which is for the node's context.

    Parameters
    ----------
    function : callable
        A task's `train`.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C may hide them
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in places and p.default is p.empty for p in parameters)


def divided_set(task: SplitTask) -> Samples | None:
    """Return the training set that nodes divide, if this process has loaded it."""
    # Under the key of `SplitTask.samples`.
    found: Samples | None = held(task.key, ("samples", "train", None))
    return None if task.own_data else found


def node_key(context: Context) -> Hashable:
    """Return what tells a node's data from those of other nodes in one process."""
    configured = (sorted(context.node_config.items()), sorted(context.run_config.items()))
    return context.node_id, repr(configured)


def first_node(clients: int) -> Context:
    """Return the context of the first of so many nodes, for a look at its data on the server."""
    config: dict[str, Any] = {"partition-id": 0, "num-partitions": clients}
    return Context(run_id=0, node_id=0, node_config=config, state=RecordDict(), run_config={})
