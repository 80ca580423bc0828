"""Parameters that a probe moves layer by layer, while the layer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.zo.directions import Scaled

__all__ = ["Layer", "Moved", "lay_out", "most_moved", "watching"]

_SMALL = 8
"""The smallest layers move at once, as many as are this part of the largest one together.

To move a layer when it is called costs some 50 µs besides its elements, whose memory is all that
is saved.
"""


@dataclass(eq=False)
class Layer:
    """What of a vector one layer holds.

    Attributes
    ----------
    module : nn.Module or None
        The layer; None for parameters that belong to none.
    held : list of (nn.Parameter, int)
        Its parameters, each with its first element in the vector, in their order there.
    inside : int
        Calls that are under way: a layer may call itself.
    at_anchor : list of Tensor
        Its parameters' values where no probe moves them, see `stand_on`.
    """

    module: nn.Module | None
    held: list[tuple[nn.Parameter, int]] = field(default_factory=list)
    inside: int = 0
    at_anchor: list[Tensor] = field(default_factory=list)

    @cached_property
    def size(self) -> int:
        """Elements of the vector in it."""
        return sum(parameter.numel() for parameter, _ in self.held)

    @cached_property
    def stretches(self) -> tuple[tuple[int, int], ...]:
        """First and last element of each stretch of the vector that it holds."""
        found: list[tuple[int, int]] = []
        for parameter, start in self.held:
            if (stop := start + parameter.numel()) == start:
                continue
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, stop))
        return tuple(found)

    def stand_on(self, anchor: Tensor) -> None:
        """Say which vector its parameters are views of."""
        ends = [(start, start + parameter.numel()) for parameter, start in self.held]
        self.at_anchor = [
            anchor[start:end].view(parameter.shape)
            for (start, end), (parameter, _) in zip(ends, self.held, strict=True)
        ]

    def put_back(self) -> None:
        """Point its parameters to the anchor."""
        for (parameter, _), value in zip(self.held, self.at_anchor, strict=True):
            parameter.data = value
        self.inside = 0  # last: whoever is interrupted before puts back once more


def lay_out(
    parameters: Sequence[nn.Parameter], layers: Iterable[nn.Module]
) -> tuple[list[Layer], Layer]:
    """Return which of the vector's parameters each layer holds, and those that move at once.

    The latter are those that no layer has alone, and those of the smallest layers.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        Those of the vector, in its order.
    layers : iterable of nn.Module
        The layers; one that is named twice is one. A scripted one, or one that holds such, takes no
        hooks: what it has moves with what no layer has.
    """
    owners: dict[int, list[Layer]] = {}
    for module in {id(module): module for module in layers}.values():
        if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
            continue
        layer = Layer(module)
        for parameter in module.parameters():
            owners.setdefault(id(parameter), []).append(layer)
    others, start = Layer(None), 0
    for parameter in parameters:
        found = owners.get(id(parameter), [])
        (found[0] if len(found) == 1 else others).held.append((parameter, start))
        start += parameter.numel()
    held = {id(layer): layer for found in owners.values() for layer in found if layer.held}
    apart = list(held.values())
    for layer in _smallest(apart):
        apart.remove(layer)
        others.held += layer.held
    others.held.sort(key=lambda pair: pair[1])
    return apart, others


def _smallest(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that move at once, see `_SMALL`."""
    room, found = max((layer.size for layer in layers), default=0) // _SMALL, []
    for layer in sorted(layers, key=lambda layer: layer.size):
        room -= layer.size
        if room < 0:
            break
        found.append(layer)
    return found


def most_moved(parameters: Sequence[nn.Parameter], layers: Iterable[nn.Module]) -> int:
    """Return how many elements are there a second time while a probe moves these parameters."""
    apart, others = lay_out(parameters, layers)
    return others.size + max((layer.size for layer in apart), default=0)


class Moved:
    """A vector at ``anchor + scale * u``, of which each part is written when it is wanted.

    A layer's part is gone when the layer is done. Where the layer runs again it is written once
    more and stays: micro-batches, and recurrent layers, need not draw it each time.

    Parameters
    ----------
    anchor : Tensor
        The vector, flat; it is read alone.
    step : Scaled
        ``scale * u``.
    """

    def __init__(self, anchor: Tensor, step: Scaled) -> None:
        self._anchor, self._step = anchor, step
        self._ran: set[int] = set()
        self._kept: dict[int, Tensor] = {}

    def move(self, layer: Layer, into: Tensor) -> None:
        """Write a layer's parameters into flat memory of its size, and point them there."""
        self._step.add_stretches(into, self._anchor, layer.stretches)
        self._point(layer, into)

    def _point(self, layer: Layer, into: Tensor) -> None:
        if len(layer.held) == 1:
            pieces: Sequence[Tensor] = (into,)
        else:
            pieces = into.split([parameter.numel() for parameter, _ in layer.held])
        for (parameter, _), piece in zip(layer.held, pieces, strict=True):
            parameter.data = piece.view(parameter.shape)

    def enter(self, layer: Layer) -> None:
        """Move a layer that is called."""
        if (kept := self._kept.get(id(layer))) is not None:
            self._point(layer, kept)
            return
        room = self._anchor.new_empty(layer.size)
        self.move(layer, room)
        if id(layer) in self._ran:
            self._kept[id(layer)] = room
        self._ran.add(id(layer))


@contextmanager
def watching(layers: Sequence[Layer], now: Callable[[], Moved | None]) -> Iterator[None]:
    """Inside, the parameters of layers are moved while their layer runs.

    Parameters
    ----------
    layers : sequence of Layer
        The layers; each has a module.
    now : callable
        Gives the vector that is moved at the moment; None for none.
    """
    with ExitStack() as hooks:
        for layer in layers:
            assert layer.module is not None
            for handle in _watch(layer, layer.module, now):
                hooks.callback(handle.remove)
        yield


def _watch(layer: Layer, module: nn.Module, now: Callable[[], Moved | None]) -> list[Any]:
    def enter(called: nn.Module, *_: Any) -> None:
        # A copy that was made meanwhile has the hooks as well.
        if called is not module or (moved := now()) is None:
            return
        layer.inside += 1
        if layer.inside == 1:
            moved.enter(layer)

    def leave(called: nn.Module, *_: Any) -> None:
        if called is not module or not layer.inside:
            return
        if layer.inside == 1:
            layer.put_back()
        else:
            layer.inside -= 1

    # First in, last out: other hooks of the layer see what its forward sees.
    before = module.register_forward_pre_hook(enter, prepend=True)
    return [before, module.register_forward_hook(leave, always_call=True)]
