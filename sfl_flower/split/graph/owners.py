"""Which parameters and buffers the operations of a recorded model use, and who would own them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import fx, nn

from sfl_flower.errors import CutError
from sfl_flower.split.graph.listing import outer_names
from sfl_flower.split.parameters.quantised import is_quantised

__all__ = ["Owners"]


class Owners:
    """The state of a recorded model, by what uses it."""

    def __init__(self, root: nn.Module) -> None:
        self.tensors = _tensor_names(root)
        self.parameters = dict(root.named_parameters(remove_duplicate=False))
        self.keys = [(key, name) for key, names in self.tensors.items() for name in names]
        # The places in `keys` of what lies in a module (or is itself a tensor) of that name.
        self.within: dict[str, list[int]] = defaultdict(list)
        for place, (_, name) in enumerate(self.keys):
            for outer in (name, *outer_names(name)):
                self.within[outer].append(place)

    def trainable(self, nodes: list[fx.Node]) -> bool:
        """Tell whether ``nodes`` use a parameter that is to be trained."""
        names = self._state(nodes).values()
        return any(self.parameters[name].requires_grad for name in names if name in self.parameters)

    def refuse_shared(self, here: str, lower: list[fx.Node], upper: list[fx.Node]) -> None:
        """Refuse a parameter, or a buffer in the state, that both halves would own.

        Raises
        ------
        CutError
            Beginning with ``here`` and naming the parameter or buffer.
        """
        below, above = self._state(lower), self._state(upper)
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
        used = {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}
        places = {place for name in used for place in self.within.get(name, [])}
        found: dict[tuple[Any, ...], str] = {}
        for place in sorted(places):
            key, name = self.keys[place]
            found.setdefault(key, name)
        return found


def _tensor_names(root: nn.Module) -> dict[tuple[Any, ...], list[str]]:
    """Group the names of the state by the memory they stand for."""
    found: dict[tuple[Any, ...], list[str]] = {}
    saved = root.state_dict(keep_vars=True)
    for name, parameter in root.named_parameters(remove_duplicate=False):
        # A quantised one has no storage to ask.
        known = not is_quantised(parameter)
        storage = (known and parameter.untyped_storage().data_ptr()) or id(parameter)
        key = ("parameter", storage, parameter.storage_offset(), parameter.numel())
        found.setdefault(key, []).append(name)
    for name, buffer in root.named_buffers(remove_duplicate=False):
        if name in saved:
            found.setdefault((id(buffer),), []).append(name)
    return found
