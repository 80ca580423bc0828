"""Record what a model's forward does, module by module, without running it on data.

The recorder is torch.fx with five additions: it remembers what every module call returned (so that
a layer made of layers, such as ``layer1.0``, can be named), it keeps whole any submodule whose own
forward cannot be recorded, it keeps ``self.training`` alive where the forward passes it on, it
records ``x += y`` as the write it is, and it never bakes a random draw into the graph.
"""

from __future__ import annotations

import operator
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from sfl_flower.errors import CutError
from sfl_flower.split.graph.copying import copied
from sfl_flower.split.graph.recorder import CONSTANT, KeepWholeError, Recorder, reason, refusal

__all__ = ["Traced", "trace"]

# torch.fx patches nn.Module while it records, so two recordings must never overlap.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Traced:
    """What the forward of a model does.

    Attributes
    ----------
    root : nn.Module
        A copy of the model, whose names the graph uses and whose parameters are the model's own.
    graph : fx.Graph
        Every operation, in the order of execution.
    calls : dict[str, list[object]]
        For each called module, in the order in which the calls return: what each call returned; an
        ``fx.Node`` where it was one value.
    whole : dict[str, str]
        Submodules kept in one piece because their forward cannot be recorded, and why.
    constants : dict[str, Tensor]
        Tensors that the forward makes from nothing, by the name the graph has for them.
    """

    root: nn.Module
    graph: fx.Graph
    calls: dict[str, list[object]]
    whole: dict[str, str]
    constants: dict[str, torch.Tensor]


def trace(model: nn.Module, inputs: int | None = None) -> Traced:
    """Record what the forward of ``model`` does, without changing it.

    Parameters
    ----------
    model : nn.Module
        The model; its forward runs on symbols, on a copy that has its parameters.
    inputs : int, optional
        How many positional inputs the forward takes; by default those without a default.

    Raises
    ------
    CutError
        If the outermost forward cannot be recorded.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CutError(
            "a ScriptModule cannot be cut, for it has no Python forward to record; return the "
            "module that it was made from, or put it into a module of your own, whose other layers "
            "can be cut."
        )
    whole: dict[str, str] = {}
    # The parameters themselves, because copies would no longer show which share their memory.
    root = copied(model, {id(parameter): parameter for parameter in model.parameters()})
    with _LOCK, torch.random.fork_rng(devices=[]):
        while True:
            try:
                return _both_modes(root, inputs, whole)
            except KeepWholeError as stop:
                if stop.name in whole:
                    raise refusal(root, stop.why) from stop
                whole[stop.name] = stop.why


def _both_modes(root: nn.Module, inputs: int | None, whole: dict[str, str]) -> Traced:
    """Record in eval and in train mode, and join the two into one graph that knows its mode."""
    evaluating, eval_forms = _once(root, False, inputs, whole)
    training, train_forms = _once(root, True, inputs, whole)
    if eval_forms != train_forms:
        why = "it takes another path in train mode than in eval mode, or changes with every call"
        differing = [
            name
            for (name, call), span in training.spans.items()
            if name not in whole
            and (name, call) in evaluating.spans
            and _forms(training, span) != _forms(evaluating, evaluating.spans[name, call])
        ]
        if not differing:
            raise refusal(root, why)
        raise KeepWholeError(max(differing, key=lambda name: name.count(".")), why)
    graph = training.graph
    for node, other in zip(training.nodes, evaluating.nodes, strict=True):
        with graph.inserting_before(node):
            node.args = _join(node.args, other.args, node)
            node.kwargs = _join(node.kwargs, other.kwargs, node)
    graph.lint()
    return Traced(root, graph, training.calls, dict(whole), training.constants)


def _once(
    root: nn.Module, mode: bool, inputs: int | None, whole: dict[str, str]
) -> tuple[Recorder, list[str]]:
    for module in root.modules():
        module.training = mode
    for name in [name for name in vars(root) if name.startswith(CONSTANT)]:
        delattr(root, name)
    tracer, before = Recorder(inputs, whole), torch.get_rng_state()
    try:
        tracer.trace(root)
    except (KeepWholeError, CutError):
        raise
    except Exception as error:
        raise refusal(root, reason(error)) from error
    if not torch.equal(before, torch.get_rng_state()):
        raise refusal(root, "it draws random numbers from no input")
    return tracer, _forms(tracer, (0, len(tracer.nodes)))


def _forms(tracer: Recorder, span: tuple[int, int]) -> list[str]:
    """Write down a stretch of the graph so that only the values of flags are left out."""
    start, stop = span

    def show(value: Any) -> Any:
        if isinstance(value, fx.Node):
            index = value.meta["index"] - start
            return f"%{index}" if index >= 0 else "%outside"
        if isinstance(value, bool):
            return "flag"
        if isinstance(value, tuple | list):
            return [show(item) for item in value]
        if isinstance(value, dict):
            return {key: show(item) for key, item in value.items()}
        if isinstance(value, slice):
            return [show(value.start), show(value.stop), show(value.step)]
        return repr(value)

    forms = []
    for node in tracer.nodes[start:stop]:
        form = f"{node.op} {node.target} {show(node.args)} {show(node.kwargs)}"
        if node.op == "get_attr" and CONSTANT in str(node.target):
            value = tracer.constants[str(node.target)]
            form += f" {value.dtype} {value.tolist()}"
        forms.append(form)
    return forms


def _join(training: Any, evaluating: Any, node: fx.Node) -> Any:
    """Put ``self.training`` where the two modes pass different flags."""
    if isinstance(training, bool) and training is not evaluating:
        scope = node.meta["scope"]
        target = f"{scope}.training" if scope else "training"
        flag = node.graph.create_node("get_attr", target)
        if not training:
            flag = node.graph.call_function(operator.not_, (flag,))
        for made in (flag, *flag.all_input_nodes):
            made.meta = dict(node.meta)
        return flag
    if isinstance(training, tuple | list):
        joined = [_join(a, b, node) for a, b in zip(training, evaluating, strict=True)]
        fields = hasattr(training, "_fields")
        return type(training)(*joined) if fields else type(training)(joined)
    if isinstance(training, dict):
        return {key: _join(value, evaluating[key], node) for key, value in training.items()}
    return training
