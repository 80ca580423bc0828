"""Which operations of a graph write into their input, and which values may share memory."""

from __future__ import annotations

import inspect
import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

__all__ = ["AUGMENTED", "Effects", "argument", "effects", "written"]

AUGMENTED = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.imatmul,
    operator.iand,
    operator.ior,
    operator.ixor,
    operator.ilshift,
    operator.irshift,
}
# Anything not known to allocate is taken to share memory with its inputs: at worst a spare copy.
_FRESH_FUNCTIONS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.matmul, torch.cat, torch.stack),
    *(functional.relu, functional.gelu, functional.silu, functional.softmax, functional.linear),
    *(functional.layer_norm, functional.avg_pool2d, functional.conv2d, torch.relu, torch.tanh),
    *(torch.sigmoid, torch.mean, torch.sum, torch.exp),
}
_FRESH_METHODS = {
    *("add", "sub", "mul", "div", "matmul", "mean", "sum", "relu", "tanh", "sigmoid", "softmax"),
    *("exp", "clone", "size", "dim", "numel"),
}
_FRESH_MODULES = ("torch.nn.modules.activation", "torch.nn.modules.pooling")


@dataclass(frozen=True)
class Effects:
    """What the operations of a graph do to memory.

    Attributes
    ----------
    after : dict[fx.Node, set[fx.Node]]
        For each node, the earlier nodes that write into memory it reads: it must run after them.
    written : set[str | fx.Node]
        Memory that is written into: the name of a parameter or buffer, else the node that made it.
    state : list[fx.Node]
        The nodes that write into a parameter or buffer, or otherwise matter without a result.
    homes : dict[fx.Node, set[str | fx.Node]]
        For each node, the memory its value may lie in, named as in `written`.
    """

    after: dict[fx.Node, set[fx.Node]]
    written: set[str | fx.Node]
    state: list[fx.Node]
    homes: dict[fx.Node, set[str | fx.Node]]


def effects(graph: fx.Graph, root: nn.Module) -> Effects:
    """Follow memory through ``graph``, whose names are those of ``root``."""
    homes: dict[fx.Node, set[str | fx.Node]] = {}
    writers: dict[str | fx.Node, set[fx.Node]] = defaultdict(set)
    after: dict[fx.Node, set[fx.Node]] = {}
    state = []
    for node in graph.nodes:
        after[node] = set()
        for source in node.all_input_nodes:
            for home in homes[source]:
                after[node] |= writers[home]
        target = written(node, root)
        if target is not None:
            for home in homes[target]:
                writers[home].add(node)
        if target is not None and any(isinstance(home, str) for home in homes[target]):
            state.append(node)
        elif "assert" in getattr(node.target, "__name__", ""):
            state.append(node)
        homes[node] = _homes(node, target, root, homes)
    written_into = {home for home, nodes in writers.items() if nodes}
    return Effects(after, written_into, state, homes)


def _homes(
    node: fx.Node,
    target: fx.Node | None,
    root: nn.Module,
    homes: dict[fx.Node, set[str | fx.Node]],
) -> set[str | fx.Node]:
    if node.op == "get_attr":
        return {str(node.target)}
    if target is not None:
        return homes[target]
    if not node.all_input_nodes or _fresh(node, root):
        return {node}
    return {node}.union(*(homes[source] for source in node.all_input_nodes))


def _fresh(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        home = type(module).__module__
        single = home.startswith("torch.nn.") and not any(module.children())
        return single and (home in _FRESH_MODULES or any(True for _ in module.parameters()))
    if node.op == "call_method":
        return node.target in _FRESH_METHODS
    return node.op == "call_function" and node.target in _FRESH_FUNCTIONS


def written(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """Return the input that ``node`` writes into, or None where it writes into none."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        return None
    if node.op == "call_module":
        modules = root.get_submodule(str(node.target)).modules()
        writes = any(getattr(module, "inplace", False) is True for module in modules)
    elif node.op == "call_method":
        name = str(node.target)
        writes = name.endswith("_") and not name.endswith("__")
    elif node.op == "call_function":
        name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", "")
        writes = (
            node.target in AUGMENTED
            or (name.endswith("_") and home != "_operator" and not name.endswith("__"))
            or argument(node, "inplace") is True
        )
    else:
        writes = False
    return first if writes else None


def argument(node: fx.Node, name: str) -> Any:
    """Return what the call that ``node`` records passes as ``name``; its default if nothing."""
    if name in node.kwargs or not callable(node.target):
        return node.kwargs.get(name)
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    return bound.arguments.get(name)
