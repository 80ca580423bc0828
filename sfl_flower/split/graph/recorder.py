"""Record one forward with torch.fx: its layers, its source lines, and where recording fails."""

from __future__ import annotations

import inspect
import linecache
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from sfl_flower.errors import CutError
from sfl_flower.split.graph.effects import AUGMENTED, written
from sfl_flower.split.graph.guards import asks_for_form, passing

__all__ = ["CONSTANT", "KeepWholeError", "Recorder", "reason", "refusal"]

CONSTANT = "_tensor_constant"  # what torch.fx calls a tensor made during the forward
_CALL = nn.Module.__call__
_SKIP = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))


class KeepWholeError(Exception):
    """The forward of the submodule ``name`` cannot be recorded: ``why``."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why


class _Proxy(fx.Proxy):
    """A symbol on which augmented assignment is a write, as on a tensor."""


def _augmented(operation: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _operation in AUGMENTED:
    setattr(_Proxy, f"__{_operation.__name__}__", _augmented(_operation))


class Recorder(fx.Tracer):
    """Records one forward in one mode.

    Attributes
    ----------
    calls : dict[str, list[object]]
        What each call of each module returned, in the order in which the calls return.
    spans : dict[tuple[str, int], tuple[int, int]]
        The stretch of ``nodes`` that each call recorded, by name and number of the call.
    nodes : list[fx.Node]
        Everything recorded, in order.
    constants : dict[str, Tensor]
        Tensors that the forward made from nothing.
    """

    proxy_buffer_attributes = True

    def __init__(self, inputs: int | None, whole: dict[str, str]) -> None:
        super().__init__()
        self.inputs, self.whole = inputs, whole
        self.calls: dict[str, list[object]] = {}
        self.spans: dict[tuple[str, int], tuple[int, int]] = {}
        self.nodes: list[fx.Node] = []
        self.scopes: list[str] = [""]
        self.constants: dict[str, torch.Tensor] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the symbol that stands for ``node`` in the forward."""
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Call the outermost module with one symbol an input."""
        names = _input_names(self.root, self.inputs)
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in names]
        # Through __call__, so that hooks on the outermost module are recorded too.
        return _CALL, [self.root, *proxies]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's own layers whole, and those that cannot be recorded."""
        if module_qualified_name in self.whole or isinstance(m, torch.jit.ScriptModule):
            return True
        home = getattr(type(m).forward, "__module__", None) or ""
        return home.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(m, nn.Sequential)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a call of a module and remember what it returned.

        Raises
        ------
        KeepWholeError
            Naming the innermost module whose forward cannot be recorded.
        """
        name, start = self.path_of_module(m), len(self.nodes)
        if self.is_leaf_module(m, name):
            result = super().call_module(m, forward, args, kwargs)
        else:
            self.scopes.append(name)
            before = torch.get_rng_state()
            try:
                result = super().call_module(m, forward, args, kwargs)
            except KeepWholeError:
                raise
            except Exception as error:
                raise KeepWholeError(name, reason(error)) from error
            if not torch.equal(before, torch.get_rng_state()):
                raise KeepWholeError(name, "it draws random numbers from no input")
            self.scopes.pop()
        calls = self.calls.setdefault(name, [])
        self.spans[name, len(calls)] = (start, len(self.nodes))
        calls.append(result.node if isinstance(result, fx.Proxy) else result)
        return result

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer a guard of the outermost forward that asks for the form of a tensor alone."""
        if len(self.scopes) == 1 and asks_for_form(obj.node):
            answer = passing(_frame())
            if answer is not None:
                return answer
        return super().to_bool(obj)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Record an operation, with the module and the source line it belongs to."""
        node = super().create_node(kind, *args, **kwargs)
        node.meta = {"scope": self.scopes[-1], "where": _where(), "index": len(self.nodes)}
        self.nodes.append(node)
        target = written(node, self.root)
        if node.op == "get_attr" and CONSTANT in str(node.target):
            self.constants[str(node.target)] = getattr(self.root, str(node.target))
        if target is not None and str(target.target) in self.constants:
            raise ValueError("it writes into a tensor that it makes during the forward")
        return node


def _input_names(root: nn.Module, count: int | None) -> list[str]:
    """Names of the tensors that the forward takes; arguments with a default keep it."""
    parameters = inspect.signature(root.forward).parameters.values()
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    required = [p for p in by_place if p.default is p.empty]
    if any(p.kind == p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise refusal(root, "it requires an argument by keyword; inputs come by position")
    if count is None:
        count = max(1, len(required))
    if count < len(required) or (count > len(by_place) and not any_number):
        raise CutError(
            f"the forward of {type(root).__name__} takes {len(required)} to {len(by_place)} "
            f"inputs but {count} were given; give one example tensor for each of its inputs."
        )
    names = [p.name for p in by_place[:count]]
    return names + [f"input_{index}" for index in range(len(names), count)]


def _frame() -> FrameType:
    """Return the innermost frame that belongs to the model."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIP):
        frame = frame.f_back
    return frame


def _where() -> str:
    """File and line of the innermost frame that belongs to the model."""
    frame = _frame()
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def reason(error: Exception) -> str:
    """Say what the recorder stumbled over, and on which line of the model."""
    said = str(error).strip().splitlines()
    if isinstance(error, fx.proxy.TraceError) and "control flow" in str(error):
        said = ["control flow depends on the data"]
    place, step = "", error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if not name.startswith(_SKIP) and not name.startswith("<"):
            line = linecache.getline(name, step.tb_lineno).strip()
            place = f" at {Path(name).name}:{step.tb_lineno}" + (f" (`{line}`)" if line else "")
        step = step.tb_next
    return (said[0] if said else type(error).__name__) + place


def refusal(root: nn.Module, why: str) -> CutError:
    """Make the error for a model whose outermost forward cannot be recorded."""
    return CutError(
        f"the forward of {type(root).__name__} cannot be recorded: {why}; move that part into a "
        "submodule of its own, which is then kept whole, or rewrite it with tensor operations."
    )
