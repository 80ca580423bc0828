"""Activation checkpointing of a half: backprop keeps what enters each segment, and runs it again.

A half that was cut by its graph is divided where a single tensor crosses: around its blocks (what
stands in an ``nn.Sequential`` or ``nn.ModuleList`` and has layers of its own), and a run of n
operations outside any block into about √n segments. A half of a transformers model is divided
around its blocks. The last segment is not run again: its backward comes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from sfl_flower.split.graph.effects import effects
from sfl_flower.split.graph.half import Half, compile_graph
from sfl_flower.split.transformers.block_halves import BlockHalf, Passed
from sfl_flower.split.whole import Whole

__all__ = ["checkpoint_segments"]

_LISTS = (nn.Sequential, nn.ModuleList)


def checkpoint_segments(module: nn.Module) -> int:
    """Let a half, or a whole model of two, checkpoint its segments from now on.

    Results are the same to the bit. A copy of the module does not checkpoint.

    Parameters
    ----------
    module : nn.Module
        A half in its final modes, changed in place.

    Returns
    -------
    int
        How many segments run again in a backward; 0 where there is nothing to divide.
    """
    if isinstance(module, Whole):
        return checkpoint_segments(module.client) + checkpoint_segments(module.server)
    if isinstance(module, Half):
        return _graph(module)
    return _blocks(module) if isinstance(module, BlockHalf) else 0


def _again(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run something so that backprop keeps its inputs alone."""
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    return checkpoint(run, *args, use_reentrant=False, **kwargs)


def _blocks(half: BlockHalf) -> int:
    lists = [module for module in half.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(part) for each in lists for child in each for part in child.modules()}
    blocks = [
        block
        for each in lists
        if id(each) not in inner
        for block in each
        if not isinstance(block, Passed) and any(block.children())
    ]
    for block in blocks[:-1]:
        block.forward = partial(_again, block.forward)
    return len(blocks[:-1])


def _graph(half: Half) -> int:
    parts = [compile_graph(graph) for graph in _segments(half)]

    def run(self: Half, x: Tensor) -> Any:
        for part in parts[:-1]:
            x = _again(part, self, x)
        return parts[-1](self, x)

    if len(parts) > 1:
        half._sfl_run = run
    return max(0, len(parts) - 1)


def _segments(half: Half) -> list[fx.Graph]:
    """Return the graphs of the segments, each from the value that enters it to the next's."""
    *nodes, output = [n for n in half._sfl_graph.nodes if n.op not in ("placeholder", "get_attr")]
    inputs = [node for node in half._sfl_graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or not isinstance(output.args[0], fx.Node):
        return []
    legal = {**_crossings(half, inputs[0], nodes), 0: inputs[0]}
    starts = sorted({_nearest(start, legal) for start in _wanted(half, nodes)} - {-1} | {0})
    values = [*(legal[start] for start in starts), output.args[0]]
    return [
        _cut_out(nodes[start:end], value, leaving)
        for (start, end), (value, leaving) in zip(
            pairwise([*starts, len(nodes)]), pairwise(values), strict=True
        )
    ]


def _wanted(half: Half, nodes: Sequence[fx.Node]) -> Iterator[int]:
    """Yield before which operations a segment should begin."""
    start = 0
    for block, run in groupby(nodes, partial(_block_of, half)):
        count = len(list(run))
        pieces = 1 if block else max(1, round(math.sqrt(count)))
        yield from (start + round(count * piece / pieces) for piece in range(pieces))
        start += count


def _nearest(wanted: int, legal: dict[int, fx.Node]) -> int:
    """Return the first place from here on where a segment may begin, -1 for none."""
    return min((place for place in legal if place >= wanted), default=-1)


def _block_of(half: Half, node: fx.Node) -> str:
    """Return the block that an operation is in, empty for none."""
    path = str(node.target) if node.op == "call_module" else str(node.meta.get("scope", ""))
    owner: nn.Module = half
    names = path.split(".") if path else []
    for count, name in enumerate(names, 1):
        child = owner.get_submodule(name)
        inside = half._sfl_listed if count == 1 else isinstance(owner, _LISTS)
        if inside and not isinstance(child, _LISTS) and any(child.children()):
            return ".".join(names[:count])
        owner = child
    return ""


def _crossings(half: Half, x: fx.Node, nodes: Sequence[fx.Node]) -> dict[int, fx.Node]:
    """Return before which operations a single value is alive that nothing writes into later."""
    place = {node: index for index, node in enumerate(nodes)} | {x: -1}
    last = {node: max((place.get(user, len(nodes)) for user in node.users), default=-1)
            for node in place}  # fmt: skip
    found = {}
    for index in range(1, len(nodes)):
        alive = [node for node in place if place[node] < index <= last[node]]
        if len(alive) == 1:
            graph = _cut_out(nodes[index:], alive[0], nodes[-1])
            if next(iter(graph.nodes)) not in effects(graph, half).written:
                found[index] = alive[0]
    return found


def _cut_out(nodes: Sequence[fx.Node], value: fx.Node, leaving: fx.Node) -> fx.Graph:
    """Return the graph of some operations, between the values that enter and that leave."""
    graph = fx.Graph()
    copies = {value: graph.placeholder("x")}
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in copies:
                copies[source] = graph.node_copy(source)
        copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(copies[leaving])
    return graph
