"""Parameters that a probe moves layer by layer, when the layer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.zo.directions import Scaled

__all__ = ["Moved", "Part", "lay_out", "most_moved", "watching"]

# To move a part when a layer of it is called costs some 50 µs beside its elements.
_SMALL = 8
"""The smallest layers move at once, as many as are this part of the largest one together."""
_TOGETHER = 1 << 18
"""Elements up to which layers that are called one after another move as one, if one has as many."""


@dataclass(eq=False)
class Part:
    """What of a vector moves together: that of a layer, or of several.

    Attributes
    ----------
    modules : list of nn.Module
        The layers; none for parameters that move before any layer runs.
    held : list of (nn.Parameter, int)
        Their parameters, each with its first element in the vector, in their order there.
    at_anchor : list of Tensor
        The parameters' values where no probe moves them, see `stand_on`.
    """

    modules: list[nn.Module] = field(default_factory=list)
    held: list[tuple[nn.Parameter, int]] = field(default_factory=list)
    at_anchor: list[Tensor] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Elements of the vector in it."""
        return sum(parameter.numel() for parameter, _ in self.held)

    @cached_property
    def stretches(self) -> tuple[tuple[int, int], ...]:
        """First element of each stretch of the vector that it holds, and that after its last."""
        found: list[tuple[int, int]] = []
        for parameter, start in self.held:
            if (stop := start + parameter.numel()) == start:
                continue
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, stop))
        return tuple(found)

    def take(self, other: Part) -> None:
        """Take up what another part holds."""
        self.modules += other.modules
        self.held = sorted(self.held + other.held, key=lambda pair: pair[1])

    def stand_on(self, anchor: Tensor) -> None:
        """Say which vector its parameters are views of."""
        ends = [(start, start + parameter.numel()) for parameter, start in self.held]
        self.at_anchor = [
            anchor[start:end].view(parameter.shape)
            for (start, end), (parameter, _) in zip(ends, self.held, strict=True)
        ]

    def point(self, flat: Tensor) -> None:
        """Point its parameters into flat memory of its size."""
        at = 0
        for parameter, _ in self.held:
            end = at + parameter.numel()
            parameter.data = flat[at:end].view(parameter.shape)
            at = end

    def put_back(self) -> None:
        """Point its parameters to the anchor."""
        for (parameter, _), value in zip(self.held, self.at_anchor, strict=True):
            parameter.data = value


def lay_out(
    parameters: Sequence[nn.Parameter], layers: Iterable[nn.Module]
) -> tuple[list[Part], Part]:
    """Return the parts that move when a layer of theirs is called, and what moves before.

    The latter is what no layer has alone, and what the smallest layers have.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        Those of the vector, in its order.
    layers : iterable of nn.Module
        The layers, those that are called one after another side by side; one that is named twice is
        one. A scripted one, or one that holds such, takes no hooks: what it has moves with what no
        layer has.
    """
    owners: dict[int, list[Part]] = {}
    parts: list[Part] = []
    for module in {id(module): module for module in layers}.values():
        if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
            continue
        parts.append(Part([module]))
        for parameter in module.parameters():
            owners.setdefault(id(parameter), []).append(parts[-1])
    before, start = Part(), 0
    for parameter in parameters:
        found = owners.get(id(parameter), [])
        (found[0] if len(found) == 1 else before).held.append((parameter, start))
        start += parameter.numel()
    return _joined([part for part in parts if part.held], before), before


def _joined(parts: Sequence[Part], before: Part) -> list[Part]:
    """Return the parts with what moves better together; the smallest go to what moves before."""
    largest = max((part.size for part in parts), default=0)
    room, small = largest // _SMALL, set[int]()
    for part in sorted(parts, key=lambda part: part.size):
        room -= part.size
        if room < 0:
            break
        small.add(id(part))
        before.held = sorted(before.held + part.held, key=lambda pair: pair[1])
    found: list[Part] = []
    for part in (part for part in parts if id(part) not in small):
        if found and found[-1].size + part.size <= min(largest, _TOGETHER):
            found[-1].take(part)
        else:
            found.append(part)
    return found


def most_moved(parameters: Sequence[nn.Parameter], layers: Iterable[nn.Module]) -> int:
    """Return how many elements are there a second time while a probe moves these parameters."""
    parts, before = lay_out(parameters, layers)
    return before.size + max((part.size for part in parts), default=0)


class Moved:
    """A vector at ``anchor + scale * u``, of which each part is written when it is wanted.

    A part is gone when another one is wanted, which is written where it was. Where it is wanted
    again it is written once more and stays: micro-batches, and recurrent layers, need not draw it
    each time.

    Parameters
    ----------
    anchor : Tensor
        The vector, flat; it is read alone.
    step : Scaled
        ``scale * u``.
    most : int
        Elements of the largest part.
    """

    def __init__(self, anchor: Tensor, step: Scaled, most: int) -> None:
        self._anchor, self._step, self._most = anchor, step, most
        self._now: Part | None = None
        self._room: Tensor | None = None
        self._ran: set[int] = set()
        self._kept: dict[int, Tensor] = {}

    def move(self, part: Part, into: Tensor) -> None:
        """Write a part into flat memory of its size, and point its parameters there."""
        self._step.add_stretches(into, self._anchor, part.stretches)
        part.point(into)

    def want(self, part: Part) -> None:
        """Move a part, a layer of which is called."""
        if part is self._now:
            return
        self.put_back()
        self._now = part
        if (room := self._kept.get(id(part))) is not None:
            part.point(room)
            return
        if id(part) in self._ran:
            room = self._kept[id(part)] = self._anchor.new_empty(part.size)
            self._room = None
        elif self._room is None:
            # Here and not before: what the forward holds in front of the first part is its peak.
            room = self._room = self._anchor.new_empty(self._most)
        else:
            room = self._room
        self.move(part, room[: part.size])
        self._ran.add(id(part))

    def put_back(self) -> None:
        """Put back the part that was wanted last."""
        if self._now is not None:
            self._now.put_back()
            self._now = None


@contextmanager
def watching(parts: Sequence[Part], now: Callable[[], Moved | None]) -> Iterator[None]:
    """Inside, parts are moved when a layer of theirs is called.

    Parameters
    ----------
    parts : sequence of Part
        Of them each has modules.
    now : callable
        Gives the vector that is moved at the moment; None for none.
    """
    with ExitStack() as hooks:
        for part in parts:
            for module in part.modules:
                # First: other hooks of the layer see what its forward sees.
                watch = module.register_forward_pre_hook(_want(part, module, now), prepend=True)
                hooks.callback(watch.remove)
        yield


def _want(part: Part, module: nn.Module, now: Callable[[], Moved | None]) -> Callable[..., None]:
    def want(called: nn.Module, *_: Any) -> None:
        # A copy that was made meanwhile has the hook as well.
        if called is module and (moved := now()) is not None:
            moved.want(part)

    return want
