"""Sizes that both halves can tell by themselves, so that they need not cross a cut.

Two kinds of size often go around a layer: one that the forward asserts to be a constant, as vision
transformers do with the height of an image, and the batch size, which the smashed data have as
their first axis.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

__all__ = ["add_batch_check", "add_batch_size", "batch_sizes", "fold_asserted", "measured"]

_ARITHMETIC: set[Callable[..., Any]] = {
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod),
}
_RESHAPES_IN_PLACE = {"resize_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "set_"}

# Operations, functions as well as methods, whose result has the first axis of the tensors they read
# or, for the second group, of the first of them.
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "truediv", "neg", "pow", "iadd", "isub", "imul", "itruediv"),
    *("add_", "sub_", "mul_", "div_", "relu", "relu_", "gelu", "silu", "hardswish", "tanh"),
    *("sigmoid", "softmax", "dropout", "stochastic_depth", "clone", "contiguous", "detach"),
    *("float", "half", "to", "type_as", "masked_fill"),
}
_OF_THE_FIRST = {
    *("conv1d", "conv2d", "conv3d", "linear", "matmul", "bmm", "embedding", "interpolate"),
    *("layer_norm", "batch_norm", "group_norm", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d"),
}
_ALONG_AXES = {"transpose", "swapaxes", "unsqueeze", "flatten", "mean", "sum", "cat"}
_SHAPING = {"view", "reshape", "expand"}


def fold_asserted(graph: fx.Graph) -> None:
    """Put constants where ``graph`` reads a size that it asserts to be one, and in their sums.

    The assertions stay: whoever runs them holds the size to the constant.
    """
    pinned, kept = dict[tuple[fx.Node, int], int](), set[fx.Node]()
    for node in graph.nodes:
        claim = node.args[0] if _name(node) == "_assert" and node.args else None
        if not isinstance(claim, fx.Node) or _name(claim) != "eq" or len(claim.args) != 2:
            continue
        for size, value in (claim.args, claim.args[::-1]):
            read = measured(size)
            if read is not None and type(value) is int and not _reshaped(read[0]):
                pinned[read] = value
                kept.add(claim)
    for node in graph.nodes if pinned else ():
        read = measured(node)
        value = pinned.get(read) if read is not None else _computed(node)
        if value is not None:
            for user in set(node.users) - kept:
                user.args = _replaced(user.args, node, value)
                user.kwargs = _replaced(user.kwargs, node, value)


def _computed(node: fx.Node) -> int | None:
    if node.target not in _ARITHMETIC or any(type(arg) is not int for arg in node.args):
        return None
    try:
        return int(node.target(*node.args))
    except ZeroDivisionError:
        return None


def _replaced(arguments: Any, node: fx.Node, value: int) -> Any:
    return fx.map_arg(arguments, lambda found: value if found is node else found)


def measured(node: object) -> tuple[fx.Node, int] | None:
    """Return the tensor and the axis whose size ``node`` reads; None if it reads no size."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source, axis = node.args[0], [*node.args[1:], *node.kwargs.values()]
    if len(axis) != 1 or type(axis[0]) is not int:
        return None
    if node.op == "call_method" and node.target == "size":
        return source, axis[0]
    if node.target is operator.getitem and source.args and isinstance(source.args[0], fx.Node):
        by_method = source.op == "call_method" and source.target == "size"
        by_name = source.target is getattr and source.args[1:] == ("shape",)
        if by_name or (by_method and len(source.args) == 1 and not source.kwargs):
            return source.args[0], axis[0]
    return None


def batch_sizes(
    graph: fx.Graph, root: nn.Module
) -> tuple[dict[fx.Node, fx.Node], dict[fx.Node, fx.Node]]:
    """Follow the batch, the first axis of each input, through ``graph``.

    Returns
    -------
    tensors : dict[fx.Node, fx.Node]
        Values whose first axis is as long as that of an input, and which input.
    sizes : dict[fx.Node, fx.Node]
        Numbers that are the length of an input's first axis, and which input's.
    """
    tensors, sizes = dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        read = measured(node)
        if node.op == "placeholder":
            tensors[node] = node
        elif read is not None and read[1] == 0 and read[0] in tensors and not _reshaped(read[0]):
            sizes[node] = tensors[read[0]]
        else:
            origin = _origin(node, root, tensors, sizes)
            if origin is not None:
                tensors[node] = origin
    return tensors, sizes


def _origin(
    node: fx.Node,
    root: nn.Module,
    tensors: dict[fx.Node, fx.Node],
    sizes: dict[fx.Node, fx.Node],
) -> fx.Node | None:
    """Return the input whose first axis the value of ``node`` keeps, None if that is not sure."""
    read = [tensors[source] for source in node.all_input_nodes if source in tensors]
    first = node.args[0] if node.args else None
    if node.op == "call_module":
        keeps = _layer_keeps(root.get_submodule(str(node.target)))
        return tensors.get(first) if keeps and isinstance(first, fx.Node) else None
    name, rest = _name(node), _flat((*node.args[1:], *node.kwargs.values()))
    if name in _SHAPING:
        return sizes.get(rest[0]) if rest and isinstance(rest[0], fx.Node) else None
    if name in _OF_THE_FIRST:
        return tensors.get(first) if isinstance(first, fx.Node) else None
    return read[0] if read and _keeps(name, rest) else None


def _keeps(name: str, rest: list[Any]) -> bool:
    """Tell whether the operation leaves the first axis alone; ``rest`` is what follows a tensor."""
    if name == "getitem":
        return bool(rest) and isinstance(rest[0], slice) and rest[0] == slice(None)
    if name == "permute":
        return bool(rest) and type(rest[0]) is int and rest[0] == 0
    if name in _ALONG_AXES:
        axes = [axis for axis in rest if type(axis) is int]
        return bool(axes) and min(axes) > 0
    return name in _ELEMENTWISE


def _flat(arguments: tuple[Any, ...]) -> list[Any]:
    """Take the lists among ``arguments`` apart, so that f(1, 2) and f((1, 2)) look the same."""
    found: list[Any] = []
    for argument in arguments:
        found += argument if isinstance(argument, tuple | list) else [argument]
    return found


def _layer_keeps(layer: nn.Module) -> bool:
    home, kind = type(layer).__module__, type(layer).__name__
    if not home.startswith("torch.nn.modules.") or kind.endswith("Loss"):
        return False
    if isinstance(layer, nn.Flatten):
        return layer.start_dim > 0
    return not isinstance(layer, nn.Unflatten) or layer.dim not in (0, "N")


def _reshaped(tensor: fx.Node) -> bool:
    return any(str(user.target) in _RESHAPES_IN_PLACE for user in tensor.users)


def _name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def add_batch_size(graph: fx.Graph, z: fx.Node) -> fx.Node:
    """Append the length of the first axis of ``z``."""
    size = graph.call_method("size", (z, 0))
    size.meta = {"scope": "", "where": ""}
    return size


def add_batch_check(graph: fx.Graph, z: fx.Node, x: fx.Node) -> None:
    """Append the assertion that ``z`` has the batch size of the input ``x``."""
    left, right = add_batch_size(graph, z), add_batch_size(graph, x)
    equal = graph.call_function(operator.eq, (left, right))
    said = (
        f"the smashed data must have the batch size of '{x.name}' as their first size, from which "
        "the server half takes it; give a batch, or cut at another layer"
    )
    check = graph.call_function(torch._assert, (equal, said))
    for made in (equal, check):
        made.meta = {"scope": "", "where": ""}
