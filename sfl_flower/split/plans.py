"""Where a recorded model may be cut, what crosses there, and why not elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from sfl_flower.errors import CutError
from sfl_flower.split import messages
from sfl_flower.split.effects import effects
from sfl_flower.split.tracing import Traced

__all__ = ["Plan", "Plans"]

_MANY_OUTPUTS = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


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
    """

    below: list[fx.Node]
    above: list[fx.Node]
    crossing: list[fx.Node]
    inputs: list[fx.Node]

    def client(self) -> fx.Graph:
        """Make the graph from the model's inputs to the crossing values."""
        return _subgraph([*self.inputs, *self.below], [], self.crossing)

    def server(self) -> fx.Graph:
        """Make the graph from the crossing values to the model's output."""
        return _subgraph(self.above, self.crossing, None)


class Plans:
    """The possible cuts of one recorded model."""

    def __init__(self, traced: Traced) -> None:
        self.traced, self.root, self.graph = traced, traced.root, traced.graph
        self.nodes = list(self.graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.effects = effects(self.graph, self.root)
        self.modules = dict(self.root.named_modules(remove_duplicate=False))
        first = {module: name for name, module in self.root.named_modules()}
        self.canonical = {name: first[module] for name, module in self.modules.items()}
        self.live = self._upstream({self.nodes[-1], *self.effects.state})
        self.tensors = _tensor_names(self.root)

    def legal(self) -> list[str]:
        """List the layers where a cut is legal, from input to output."""
        return [name for name in self.traced.calls if self._try(name) is not None]

    def _try(self, name: str) -> Plan | None:
        try:
            return self._plan(name)
        except CutError:
            return None

    def at(self, name: str) -> Plan:
        """Return the plan of the cut at ``name``, or refuse it and list the legal ones."""
        try:
            return self._plan(name)
        except CutError as refused:
            legal = self.legal()
            near = self.order.get(_node(self.traced.calls.get(name, [])), 0)
            before = sum(self.order[_node(self.traced.calls[other])] < near for other in legal)
            raise CutError(f"{refused}; {messages.listing(legal, before)}.") from None

    def _plan(self, name: str) -> Plan:
        node = self._output_of(name)
        here = f"cannot cut at '{name}'"
        if node not in self.live:
            raise CutError(f"{here}: its output does not reach the model's output")
        plan = self._partition(node)
        others = [value for value in plan.crossing if value is not node]
        if others:
            raise CutError(f"{here}: {self._bypass(others, plan)}")
        self._refuse_shared(here, plan)
        if all(value.op == "output" for value in plan.above):
            raise CutError(f"{here}: it is the last layer, nothing is left for the server half")
        if not any(p.requires_grad for p in self._parameters(plan.above)):
            raise CutError(f"{here}: the server half would have no trainable parameter")
        return plan

    def _output_of(self, name: str) -> fx.Node:
        """Return the value that the one call of the layer ``name`` gives."""
        here = f"cannot cut at '{name}'"
        if not isinstance(name, str):
            raise CutError(f"a layer is named by a string, not {name!r}")
        if name not in self.modules or name == "":
            raise CutError(messages.unknown(name, [*self.traced.calls], [*self.modules]))
        calls = self.traced.calls.get(self.canonical[name], [])
        if not calls:
            raise CutError(f"{here}: {self._why_never_called(name)}")
        if len(calls) > 1:
            raise CutError(f"{here}: the forward calls it {len(calls)} times")
        node = calls[0]
        several = isinstance(self.modules[name], _MANY_OUTPUTS)
        if several or not isinstance(node, fx.Node):
            found = "several values" if several else f"a {type(node).__name__}"
            raise CutError(f"{here}: it returns {found}, and only one tensor can cross")
        if node.op == "placeholder":
            raise CutError(f"{here}: it returns the model's input unchanged")
        return node

    def _why_never_called(self, name: str) -> str:
        for outer in messages.outer_names(name):
            if outer in self.traced.whole:
                why = self.traced.whole[outer]
                return f"it lies inside '{outer}', which is kept whole because {why}"
            if outer in self.traced.calls and type(self.modules[outer]).__module__.startswith(
                "torch.nn."
            ):
                kind = type(self.modules[outer]).__name__
                if not isinstance(self.modules[outer], nn.Sequential):
                    return f"it lies inside '{outer}', and torch's {kind} is kept whole"
        if isinstance(self.modules[name], nn.ModuleList | nn.ModuleDict):
            return "it only holds layers and is never called itself"
        return "the forward never calls it"

    def _upstream(self, start: set[fx.Node]) -> set[fx.Node]:
        found, todo = set(start), list(start)
        while todo:
            node = todo.pop()
            for source in {*node.all_input_nodes, *self.effects.after[node]} - found:
                found.add(source)
                todo.append(source)
        return found

    def _partition(self, node: fx.Node) -> Plan:
        """Send what ``node`` needs to the client half and the rest to the server half."""
        here = self.order[node]
        earlier = {effect for effect in self.effects.state if self.order[effect] < here}
        lower = self._upstream({node, *earlier})
        inputs = [value for value in self.nodes if value.op == "placeholder"]
        live = [value for value in self.nodes if value in self.live and value not in inputs]
        above = [value for value in live if value not in lower]
        read = {source for value in above for source in value.all_input_nodes} - {*above}
        # A parameter read on both sides is no crossing value but a tie, refused by name.
        again = [value for value in self.nodes if value in read and value.op == "get_attr"]
        crossing = [value for value in self.nodes if value in read and value.op != "get_attr"]
        below = [value for value in self.nodes if value in lower and value not in inputs]
        return Plan(below, [*again, *above], crossing, inputs)

    def _bypass(self, others: list[fx.Node], plan: Plan) -> str:
        value = others[0]
        reader = next(node for node in plan.above if value in node.all_input_nodes)
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        return (
            f"{self._describe(value)}{more} goes around it into {self._place(reader)}, "
            "and only the layer's own output may cross"
        )

    def _describe(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return f"the model's input '{node.name}'"
        names = [name for name, calls in self.traced.calls.items() if node in calls]
        if names:
            return f"the output of '{names[-1]}'"
        return f"the result of {self._place(node)}"

    def _place(self, node: fx.Node) -> str:
        if node.op == "output":
            return "the model's output"
        if node.op == "call_module":
            return f"'{node.target}'"
        operation = node.target if isinstance(node.target, str) else node.target.__name__
        scope = f" in '{node.meta['scope']}'" if node.meta["scope"] else ""
        return f"`{operation}`{scope} ({node.meta['where']})"

    def _refuse_shared(self, here: str, plan: Plan) -> None:
        """Refuse a parameter, or a buffer in the state, that both halves would own."""
        below, above = self._state(plan.below), self._state(plan.above)
        for key, name in below.items():
            if key not in above:
                continue
            kind = "parameter" if isinstance(key[0], str) else "buffer"
            other = next((n for n in self.tensors.get(key, []) if n != name), above[key])
            if other != name:
                raise CutError(f"{here}: the {kind}s '{name}' and '{other}' are tied across it")
            owner = name.rpartition(".")[0] or "the model itself"
            raise CutError(
                f"{here}: '{owner}' is used on both sides of it, so both halves would own "
                f"the {kind} '{name}'"
            )

    def _state(self, nodes: list[fx.Node]) -> dict[tuple[Any, ...], str]:
        """Map the memory of each parameter and saved buffer that ``nodes`` use to a name of it."""
        found: dict[tuple[Any, ...], str] = {}
        prefixes = [_used(node) for node in nodes]
        used = {prefix for prefix in prefixes if prefix is not None}
        for key, names in self.tensors.items():
            for name in names:
                if name in used or any(outer in used for outer in messages.outer_names(name)):
                    found.setdefault(key, name)
        return found

    def _parameters(self, nodes: list[fx.Node]) -> list[nn.Parameter]:
        names = self._state(nodes).values()
        found = dict(self.root.named_parameters(remove_duplicate=False))
        return [found[name] for name in names if name in found]


def _node(calls: list[object]) -> Any:
    return calls[0] if calls else None


def _used(node: fx.Node) -> str | None:
    return str(node.target) if node.op in ("call_module", "get_attr") else None


def _tensor_names(root: nn.Module) -> dict[tuple[Any, ...], list[str]]:
    """Group the names of the state by the memory they stand for."""
    found: dict[tuple[Any, ...], list[str]] = {}
    saved = root.state_dict(keep_vars=True)
    for name, parameter in root.named_parameters(remove_duplicate=False):
        storage = parameter.untyped_storage().data_ptr() or id(parameter)
        key = ("parameter", storage, parameter.storage_offset(), parameter.numel())
        found.setdefault(key, []).append(name)
    for name, buffer in root.named_buffers(remove_duplicate=False):
        if name in saved:
            found.setdefault((id(buffer),), []).append(name)
    return found


def _subgraph(
    nodes: list[fx.Node], entries: list[fx.Node], exits: list[fx.Node] | None
) -> fx.Graph:
    """Copy ``nodes`` into a graph that takes ``entries`` and returns ``exits``."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for index, entry in enumerate(entries):
        copies[entry] = graph.placeholder("z" if len(entries) == 1 else f"z{index}")
        copies[entry].meta = {"scope": "", "where": ""}
    for node in nodes:
        made = graph.node_copy(node, lambda old: copies[old])
        made.meta = {"scope": node.meta["scope"], "where": node.meta["where"]}
        copies[node] = made
    if exits is not None:
        (value,) = exits  # one value for now; several would leave as a tuple
        graph.output(copies[value])
    graph.lint()
    return graph
