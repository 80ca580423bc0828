"""Which operations of a recorded model go where at one cut, and the graph of each half."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from sfl_flower.split.graph.sizes import add_batch_check, add_batch_size

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Which operations go where at one cut.

    Attributes
    ----------
    below, above : list of fx.Node
        The operations of the client half and of the server half, in order.
    crossing : list of fx.Node
        The values that the server half needs from below.
    inputs : list of fx.Node
        The inputs of the model.
    sizes : dict[fx.Node, fx.Node]
        Batch sizes that the server half takes from the first axis of what crosses instead, and the
        inputs whose first axis they are: the client half asserts that it is as long.
    """

    below: list[fx.Node]
    above: list[fx.Node]
    crossing: list[fx.Node]
    inputs: list[fx.Node]
    sizes: dict[fx.Node, fx.Node]

    def client(self) -> fx.Graph:
        """Make the graph from the model's inputs to the crossing value."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in (*self.inputs, *self.below):
            _copy(node, graph, copies)
        (value,) = self.crossing  # one value for now; several would leave as a tuple
        for name in dict.fromkeys(self.sizes.values()):
            add_batch_check(graph, copies[value], copies[name])
        graph.output(copies[value])
        graph.lint()
        return graph

    def server(self) -> fx.Graph:
        """Make the graph from the crossing value to the model's output."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for index, value in enumerate(self.crossing):
            copies[value] = graph.placeholder("z" if len(self.crossing) == 1 else f"z{index}")
            copies[value].meta = {"scope": "", "where": ""}
        for size in self.sizes:
            copies[size] = add_batch_size(graph, copies[self.crossing[0]])
        for node in self.above:
            _copy(node, graph, copies)
        graph.lint()
        return graph


def _copy(node: fx.Node, graph: fx.Graph, copies: dict[fx.Node, fx.Node]) -> None:
    made = graph.node_copy(node, lambda old: copies[old])
    made.meta = {"scope": node.meta["scope"], "where": node.meta["where"]}
    copies[node] = made
