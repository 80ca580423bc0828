"""One half of a cut model: the modules it needs under their own names, and the order of calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sfl_flower.split.graph.effects import effects

__all__ = ["Half", "compile_graph"]


class Half(nn.Module):
    """A half of a model that runs a recorded part of its forward.

    Parameters, buffers and submodules carry the qualified names they have in the whole model, so
    ``state_dict()`` of the two halves joined is the ``state_dict()`` of the whole.

    Parameters
    ----------
    root : nn.Module
        A copy of the whole model, taken over and pruned to what ``graph`` uses.
    graph : fx.Graph
        What the half does; its names are those of ``root``.
    constants : dict[str, Tensor]
        Values of the names in ``graph`` that ``root`` does not have.
    """

    _sfl_graph: fx.Graph
    _sfl_run: Callable[..., Any]

    def __init__(self, root: nn.Module, graph: fx.Graph, constants: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in constants.items():
            setattr(root, name, value.clone())
        _guard_inputs(graph, root)
        attributes = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
        called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        tensors = {id(value) for value in (_lookup(root, name) for name in attributes)}
        scopes = {id(root.get_submodule(name.rpartition(".")[0])) for name in attributes}
        _prune(root, {id(root.get_submodule(name)) for name in called}, scopes, tensors)
        self._modules, self._parameters = root._modules, root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.training = root.training
        self._sfl_listed = type(root) in (nn.Sequential, nn.ModuleList)
        for name in attributes:
            if "." not in name and name not in self._buffers and name in vars(root):
                value = vars(root)[name]
                if isinstance(value, Tensor):
                    self.register_buffer(name, value, persistent=False)
                else:
                    setattr(self, name, value)
        self._sfl_graph = graph
        self._sfl_run = compile_graph(graph)

    def forward(self, *inputs: Tensor) -> Any:
        """Run this half; the server half takes the smashed data ``z``."""
        return self._sfl_run(self, *inputs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled forward out: it is made again from the graph."""
        return {name: value for name, value in vars(self).items() if name != "_sfl_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take ``state`` over and compile the forward again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._sfl_run = compile_graph(self._sfl_graph)


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """Return what runs a graph: called with the half, then with its inputs."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<half of a model>", "exec"), names)
    run: Callable[..., Any] = names["forward"]
    return run


def _guard_inputs(graph: fx.Graph, root: nn.Module) -> None:
    """Copy an input that the half would write into: it belongs to the caller.

    Autograd refuses in-place writes into ``z``, whose gradient the server needs, and a client
    forwards the same batch once a probe.
    """
    found = effects(graph, root).written
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        if node in found:
            users = list(node.users)
            with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
                copied = graph.call_method("clone", (node,))
            for user in users:
                user.replace_input_with(node, copied)


def _lookup(root: nn.Module, name: str) -> Any:
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)


def _prune(module: nn.Module, called: set[int], scopes: set[int], tensors: set[int]) -> bool:
    """Drop what is neither called nor read; tell whether anything of ``module`` is left."""
    for name, child in list(module._modules.items()):
        if child is None or id(child) in called:
            continue
        # What is compiled is one piece: it is called or it is not.
        compiled = isinstance(child, torch.jit.ScriptModule)
        if compiled or not _prune(child, called, scopes, tensors):
            del module._modules[name]
    for store in (module._parameters, module._buffers):
        for name, value in list(store.items()):
            if value is not None and id(value) not in tensors:
                del store[name]
    kept = any(value is not None for value in (*module._parameters.values(),))
    kept = kept or any(value is not None for value in module._buffers.values())
    return kept or bool(module._modules) or id(module) in scopes
