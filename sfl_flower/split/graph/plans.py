"""Where a recorded model may be cut, what crosses there, and why not elsewhere."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

from sfl_flower.errors import CutError
from sfl_flower.split.graph import listing as messages
from sfl_flower.split.graph.effects import effects
from sfl_flower.split.graph.owners import Owners
from sfl_flower.split.graph.plan import Plan
from sfl_flower.split.graph.sizes import batch_sizes, fold_asserted, measured
from sfl_flower.split.graph.tracing import Traced

__all__ = ["Plan", "Plans"]

_MANY_OUTPUTS = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


class Plans:
    """The possible cuts of one recorded model."""

    def __init__(self, traced: Traced) -> None:
        self.traced, self.root, self.graph = traced, traced.root, traced.graph
        fold_asserted(self.graph)
        self.nodes = list(self.graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.effects = effects(self.graph, self.root)
        self.modules = dict(self.root.named_modules(remove_duplicate=False))
        first = {module: name for name, module in self.root.named_modules()}
        self.canonical = {name: first[module] for name, module in self.modules.items()}
        self.live = self._upstream({self.nodes[-1], *self.effects.state})
        self.owners = Owners(self.root)
        self.batches, self.batch_sizes = batch_sizes(self.graph, self.root)

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
            hint = self._instead(name, legal[before:] or legal[-1:])
            raise CutError(f"{refused}{hint}; {messages.listing(legal, before)}.") from None

    def _instead(self, name: str, later: list[str]) -> str:
        """Say what to do about a layer that is called several times."""
        if len(self.traced.calls.get(self.canonical.get(name, ""), [])) < 2 or not later:
            return ""
        return f"; cut at '{later[0]}', the next legal layer, or give each call a layer of its own"

    def _plan(self, name: str) -> Plan:
        node = self._output_of(name)
        here = f"cannot cut at '{name}'"
        if node not in self.live:
            raise CutError(f"{here}: its output does not reach the model's output")
        plan = self._partition(node)
        others = [value for value in plan.crossing if value is not node]
        if others:
            raise CutError(f"{here}: {self._bypass(others, plan)}")
        self.owners.refuse_shared(here, plan.below, plan.above)
        if all(value.op == "output" for value in plan.above):
            raise CutError(f"{here}: it is the last layer, nothing is left for the server half")
        if not self.owners.trainable(plan.above):
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
        if _taken_apart(node):
            raise CutError(f"{here}: it returns several values, and only one tensor can cross")
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

    def _upstream(self, start: set[fx.Node], stop: set[fx.Node] | None = None) -> set[fx.Node]:
        """Return ``start`` and what it needs; of what is in ``stop``, nothing further down."""
        found, todo = set(start), list(start)
        while todo:
            node = todo.pop()
            if stop is not None and node in stop:
                continue
            for source in {*node.all_input_nodes, *self.effects.after[node]} - found:
                found.add(source)
                todo.append(source)
        return found

    def _partition(self, node: fx.Node) -> Plan:
        """Send what ``node`` needs to the client half and the rest to the server half."""
        here = self.order[node]
        earlier = {effect for effect in self.effects.state if self.order[effect] < here}
        lower = self._upstream({node, *earlier})
        plan = self._split(lower, self.live, {})
        if node not in self.batches or plan.crossing == [node]:
            return plan
        # Sizes below the cut that equal the first size of the value that crosses.
        origin, above = self.batches[node], {*plan.above}
        sizes = {
            size: origin
            for size, of in self.batch_sizes.items()
            if of is origin and size in self.live and _source(size) not in above
        }
        needed = self._upstream({self.nodes[-1], *self.effects.state}, lower | {*sizes})
        without = self._split(lower, needed, sizes)
        return without if without.crossing == [node] else plan

    def _split(
        self, lower: set[fx.Node], needed: set[fx.Node], sizes: dict[fx.Node, fx.Node]
    ) -> Plan:
        inputs = [value for value in self.nodes if value.op == "placeholder"]
        live = [value for value in self.nodes if value in needed and value.op != "placeholder"]
        above = [value for value in live if value not in lower and value not in sizes]
        read = {source for value in above for source in value.all_input_nodes} - {*above}
        taken = {size: origin for size, origin in sizes.items() if size in read}
        read -= {*taken}
        # A parameter read on both sides is no crossing value but a tie, refused by name.
        again = [value for value in self.nodes if value in read and value.op == "get_attr"]
        crossing = [value for value in self.nodes if value in read and value.op != "get_attr"]
        below = [value for value in self.nodes if value in lower and value.op != "placeholder"]
        return Plan(below, [*again, *above], crossing, inputs, taken)

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


def _node(calls: list[object]) -> Any:
    return calls[0] if calls and isinstance(calls[0], fx.Node) else None


def _taken_apart(node: fx.Node) -> bool:
    """Tell whether the forward takes one part of a value, as of a tuple, a dict or an object."""
    for user in node.users:
        if user.op != "call_function" or user.args[:1] != (node,) or len(user.args) < 2:
            continue
        # One index would take a single sample of a tensor.
        if user.target is operator.getitem and isinstance(user.args[1], int | str):
            return True
        if user.target is getattr and not hasattr(Tensor, str(user.args[1])):
            return True
    return False


def _source(size: fx.Node) -> fx.Node | None:
    read = measured(size)
    return read[0] if read else None
