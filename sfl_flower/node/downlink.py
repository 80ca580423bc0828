"""Bringing client half and head to what a request names: from the whole, or by what changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import JournalError, WireError
from sfl_flower.node.local_loss import LocalModel
from sfl_flower.node.node import Node
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.wire import StaleReply, unpack_state
from sfl_flower.wire.downlink import (
    SCALARS,
    WEIGHTS,
    blocks,
    decode_difference,
    flat_values,
    followed_state,
    held_digest,
)
from sfl_flower.wire.local import LocalRequest
from sfl_flower.wire.weights import Packed
from sfl_flower.zo.law import elements
from sfl_flower.zo.walks import RoundOfWalks, Walking

__all__ = ["HELD", "Coming", "bring", "follow", "forget_held", "stands"]

Held = Mapping[str, np.ndarray]
"""Flat float32 parameters by half: what changes tell of."""

HELD = "held"
"""Under which name a client remembers what all of a round are sent alike."""

# A digest names parameters to the bit, whoever computed them: the virtual clients of a process
# follow each change once. What a client remembers itself decides whether it may.
_RECENT: OrderedDict[str, Held] = OrderedDict()
_RECENT_HELD = 2


def forget_held() -> None:
    """Forget the parameters that this process shares among its clients."""
    _RECENT.clear()


class Coming(NamedTuple):
    """What a request brings of halves that a client holds.

    Attributes
    ----------
    ways : Mapping[str, str]
        How each half comes down, by "client" and "head".
    came : Mapping[str, Packed]
        Each of them whole, or what changes do not tell of it.
    holds, base, changes
        As in `LocalRequest`.
    """

    ways: Mapping[str, str]
    came: Mapping[str, Packed]
    holds: str
    base: str | None
    changes: bytes | None


def follow(
    node: Node, request: LocalRequest, model: LocalModel, walking: Walking | None = None
) -> StaleReply | None:
    """Load what a request names into client half and head, and remember what changes tell of.

    Parameters
    ----------
    node : Node
        The client.
    request : LocalRequest
        Brings both halves whole, or changes since what the client held.
    model : LocalModel
        Client half and head; loaded.
    walking : Walking, optional
        How walks go, for a method that has them.

    Returns
    -------
    StaleReply or None
        The answer of a client that does not hold what the changes begin with; it names what it
        holds.

    Raises
    ------
    WireError
        If the two sides run different models, or what came is not what the request names.
    """
    coming = Coming(
        {"client": request.downlink, "head": request.head_downlink},
        {"client": request.weights, "head": request.head_weights},
        str(request.holds),
        request.base,
        request.changes,
    )
    modules = {"client": model.client, "head": model.head}
    stood = bring(node, HELD, modules, coming, request.head, walking)
    return None if stood is None else StaleReply(request.round, stood)


def bring(
    node: Node,
    kept: str,
    modules: Mapping[str, nn.Module],
    coming: Coming,
    head: str,
    walking: Walking | None = None,
) -> str | None:
    """Load what comes down into halves, and remember what changes tell of.

    Parameters
    ----------
    node : Node
        The client.
    kept : str
        Under which name it remembers what it holds of them.
    modules : Mapping[str, nn.Module]
        The halves, by "client" and "head"; loaded.
    coming : Coming
        What a request brings of each.
    head : str
        Kind of the auxiliary head.
    walking : Walking, optional
        How walks go, for a method that has them.

    Returns
    -------
    str or None
        Of a client that does not hold what the changes begin with, what names what it holds, ""
        for what is of no use.

    Raises
    ------
    WireError
        As `follow`.
    """
    own = {name: travelling_state(module) for name, module in modules.items()}
    told = {n: followed_state(modules[n]) for n, way in coming.ways.items() if way != WEIGHTS}
    if coming.base is None:
        for name, module in modules.items():
            load_travelling(module, unpack_state(coming.came[name], own[name]))
        held: Held = {name: flat_values(state) for name, state in told.items()}
        if held_digest(held) != coming.holds:
            raise WireError("The weights that came whole are not those that the request names.")
    else:
        before = _before(node, kept, head, told)
        if (digest := held_digest(before)) != coming.base:
            return digest
        held = _RECENT.get(coming.holds) or _changed(before, coming, walking)
        if held_digest(held) != coming.holds:
            return ""
        for name, state in own.items():
            parts = told.get(name, {})
            _load(parts, unpack_state(_packed(held, name, parts), parts))
            rest = {key: value for key, value in state.items() if key not in parts}
            _load(rest, unpack_state(coming.came[name], rest))
    if coming.base != coming.holds:
        node.store.put(kept, held, content=coming.holds)
    _RECENT[coming.holds] = held
    _RECENT.move_to_end(coming.holds)
    while len(_RECENT) > _RECENT_HELD:
        _RECENT.popitem(last=False)
    return None


def stands(node: Node, kept: str, head: str, names: Iterable[str]) -> str:
    """Return what names what a client holds of halves; the parameters are those of `bring`."""
    return held_digest(_before(node, kept, head, names))


def _before(node: Node, kept: str, head: str, names: Iterable[str]) -> Held:
    """Return what a client holds; of one that was sent nothing, or lost it, what it builds.

    One that was started again holds what its files do: what names it says which version that is.
    """
    if held := node.store.recover(kept):
        return held

    def build() -> Held:
        modules = {
            "client": node.ready(node.task.build(node.model_seed).client),
            "head": node.new_head(head),
        }
        return {name: flat_values(followed_state(modules[name])) for name in names}

    return node.memo(("built", head, *names), build)


def _packed(held: Held, name: str, parts: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {"float32": held[name]} if parts else {}


def _load(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def _changed(before: Held, coming: Coming, walking: Walking | None) -> Held:
    """Return what a client holds after the changes of a request."""
    held, ways = dict(before), coming.ways
    walks = [name for name in held if ways.get(name) == SCALARS]
    for kind, data in blocks(coming.changes or b""):
        if kind == SCALARS:
            if walking is None or not walks:
                raise WireError("Changes of weights hold walks, which this method has none of.")
            _walk(held, walks, RoundOfWalks.decode(data), walking)
        elif kind not in held or ways[kind] == SCALARS:
            raise WireError(f"Changes of weights tell of the {kind}, which does not come so.")
        else:
            held[kind] = held[kind] + decode_difference(ways[kind], data, held[kind].size)
    return held


def _walk(
    held: dict[str, np.ndarray], names: list[str], walks: RoundOfWalks, walking: Walking
) -> None:
    """Move what walks to the mean of the ends of all walks."""
    start = torch.from_numpy(np.concatenate([held[name] for name in names]))
    if start.numel() != elements(walking.shapes):
        raise WireError(
            f"The client holds {start.numel()} parameters that walk, this model has "
            f"{elements(walking.shapes)}; the two sides run different models."
        )
    try:
        found = walking.mean(start, walks).numpy()
    except JournalError as error:
        raise WireError(f"The walks that came down cannot be followed: {error}") from error
    at = 0
    for name in names:
        size = held[name].size
        held[name] = found[at : at + size]
        at += size
