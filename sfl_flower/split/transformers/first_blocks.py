"""The first layers of a server half, as a module of their own."""

from __future__ import annotations

import copy
import re

from torch import fx, nn

from sfl_flower.errors import CutError
from sfl_flower.split.graph.copying import copied
from sfl_flower.split.graph.half import Half
from sfl_flower.split.graph.plans import Plans
from sfl_flower.split.graph.tracing import Traced, trace
from sfl_flower.split.transformers.block_halves import Passed, ServerBlocks

__all__ = ["first_blocks", "first_text_blocks"]


def first_blocks(server: nn.Module, last: str) -> Half:
    """Copy ``server`` from its input up to and including the layer ``last``.

    Parameters
    ----------
    server : nn.Module
        A server half, or any module that takes one tensor and whose forward can be recorded.
    last : str
        Qualified name of the layer; one behind which ``server`` could be cut again.

    Raises
    ------
    CutError
        There is no such layer in ``server``, or more than its output crosses behind it.
    """
    traced = _traced(server)
    plans = Plans(traced)
    legal = plans.legal()
    if last not in legal:
        listed = f"the layers to end at are {', '.join(legal)}" if legal else "it is all one block"
        raise CutError(f"the server half has no first blocks that end at '{last}'; {listed}.")
    return Half(copied(server), plans.at(last).client(), traced.constants)


def first_text_blocks(server: ServerBlocks, last: str) -> ServerBlocks:
    """Copy the server half of a transformers model without the blocks behind `last`.

    Parameters
    ----------
    server : ServerBlocks
        The server half.
    last : str
        ``block:N``, the N-th block of the whole model, or the block's name.

    Returns
    -------
    ServerBlocks
        The blocks up to and including that one, and everything that follows the last of all: norm
        and output layer.

    Raises
    ------
    CutError
        The server half has no such block.
    """
    short = copy.deepcopy(server)
    path, _, first = short._sfl_first.rpartition(".")
    blocks = short._sfl_model[0].get_submodule(path)
    if not first.isdigit():
        raise CutError(
            "the server half has no block to end at: the cut is behind the last; use head 'linear' "
            "or 'pooled'."
        )
    held = [name for name in blocks._modules if int(name) >= int(first)]
    numbered = re.fullmatch(r"block:(\d+)", last)
    asked = str(int(numbered[1]) - 1) if numbered else last.rpartition(".")[2]
    if asked not in held or not (numbered or f".{last}".endswith(f".{path}.{asked}")):
        raise CutError(
            f"the server half has no block '{last}' to end at; it has block:{int(held[0]) + 1} to "
            f"block:{int(held[-1]) + 1}."
        )
    for name in held[held.index(asked) + 1 :]:
        blocks._modules[name] = Passed()
    return short


def _traced(server: nn.Module) -> Traced:
    """Say what ``server`` does; what a half does is in its graph, which need not be recorded."""
    if not isinstance(server, Half):
        return trace(server, 1)
    root = copied(server)
    assert isinstance(root, Half)
    graph = root._sfl_graph
    for node in graph.nodes:  # the copy of an input that would be written into has no place
        node.meta.setdefault("scope", "")
        node.meta.setdefault("where", "")
    order = {node: index for index, node in enumerate(graph.nodes)}
    found = {name: _calls(graph, name) for name, _ in root.named_modules() if name}
    names = sorted(
        (name for name in found if found[name]),
        key=lambda name: (order[found[name][-1]], -name.count(".")),
    )
    return Traced(root, graph, {name: [*found[name]] for name in names}, {}, {})


def _calls(graph: fx.Graph, name: str) -> list[fx.Node]:
    """Find what the calls of the module ``name`` return.

    A recorded half keeps the calls of the innermost layers only; what a layer made of layers
    returns is the one value of its own that others read.
    """
    called = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if called:
        return called
    within = {
        node
        for node in graph.nodes
        if _inside(node.meta["scope"], name)
        or (node.op == "call_module" and _inside(str(node.target), name))
    }
    return [n for n in graph.nodes if n in within and any(user not in within for user in n.users)]


def _inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
