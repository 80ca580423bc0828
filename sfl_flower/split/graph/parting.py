"""A half in two parts: what no trained parameter moves, and the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sfl_flower.split.graph.effects import effects, written
from sfl_flower.split.graph.half import Half, compile_graph

__all__ = ["Parted", "Values", "part_graph"]

Values = Sequence[Any]
"""What crosses from the first part to the rest: tensors mostly, sizes and flags where needed."""


@dataclass(frozen=True)
class Parted:
    """A module in two parts, which share its parameters; ``rest(first(x))`` is ``module(x)``.

    Attributes
    ----------
    first : callable
        Runs, on inputs, everything before the first trained parameter. What it gives is the same
        at whatever values of the trained parameters.
    rest : callable
        Runs what follows, at the parameters of the moment, as often as wanted: it leaves the values
        as they are.
    """

    first: Callable[[Tensor], Values]
    rest: Callable[[Values], Tensor]


def part_graph(half: Half, trained: Collection[int]) -> Parted | None:
    """Part a recorded half before the first operation that reads a trained parameter.

    Parameters
    ----------
    half : Half
        It stays as it is.
    trained : collection of int
        Identities of the trained parameters.

    Returns
    -------
    Parted or None
        The same operations in the same order; None where no weight is read before, or where the
        half writes into its own state.
    """
    graph = half._sfl_graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    *nodes, output = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr")]
    places = enumerate(nodes)
    start = next((at for at, node in places if _weights(half, node) & set(trained)), len(nodes))
    before, behind = nodes[:start], nodes[start:]
    found = effects(graph, half)
    if len(inputs) != 1 or not any(_weights(half, node) for node in before):
        return None
    if any(isinstance(_named(half, home), Tensor) for home in found.written):
        return None  # a later forward would find another state
    following = {*behind, output}
    alive = [node for node in (*inputs, *before) if following.intersection(node.users)]
    first = _compiled(inputs, before, tuple(alive))
    rest = _compiled(alive, behind, output.args[0])
    changed = {
        home for node in behind if (into := written(node, half)) for home in found.homes[into]
    }
    copied = _reached([found.homes[node] for node in alive], changed)

    def again(values: Values) -> Tensor:
        given = list(values)
        # Together: two views of one memory stay that.
        for at, value in zip(copied, copy.deepcopy([given[at] for at in copied]), strict=True):
            given[at] = value
        z: Tensor = rest(half, *given)
        return z

    return Parted(torch.no_grad()(lambda x: first(half, x)), torch.no_grad()(again))


def _weights(half: nn.Module, node: fx.Node) -> set[int]:
    """Return the identities of the parameters that an operation reads."""
    found = set()
    if node.op == "call_module":
        found = {id(value) for value in half.get_submodule(str(node.target)).parameters()}
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            value = _named(half, str(source.target))
            inside = value.parameters() if isinstance(value, nn.Module) else [value]
            found |= {id(one) for one in inside if isinstance(one, nn.Parameter)}
    return found


def _named(half: nn.Module, home: str | fx.Node) -> Any:
    """Return what a half has under a name, None for memory that an operation made."""
    if isinstance(home, fx.Node):
        return None
    path, _, name = home.rpartition(".")
    return getattr(half.get_submodule(path), name)


def _compiled(
    entering: Sequence[fx.Node], nodes: Sequence[fx.Node], leaving: Any
) -> Callable[..., Any]:
    """Return what runs some operations, from values that enter to those that leave."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"v{at}") for at, node in enumerate(entering)}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # parameters and flags are read where they are needed
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    graph.output(fx.node.map_arg(leaving, copied))
    return compile_graph(graph)


def _reached(homes: Sequence[set[Any]], changed: set[Any]) -> list[int]:
    """Return which values share memory with what is changed, through each other as well."""
    while True:
        found = [at for at, own in enumerate(homes) if own & changed]
        wider = changed.union(*(homes[at] for at in found))
        if wider == changed:
            return found
        changed = wider
