"""Bringing client half and head to what a request names: from the whole, or by what changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

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
from sfl_flower.zo.law import elements
from sfl_flower.zo.walks import RoundOfWalks, Walking

__all__ = ["follow", "forget_held"]

Held = Mapping[str, np.ndarray]
"""Flat float32 parameters by half: what changes tell of."""

_HELD = "held"

# A digest names parameters to the bit, whoever computed them: the virtual clients of a process
# follow each change once. What a client remembers itself decides whether it may.
_RECENT: OrderedDict[str, Held] = OrderedDict()
_RECENT_HELD = 2


def forget_held() -> None:
    """Forget the parameters that this process shares among its clients."""
    _RECENT.clear()


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
    ways = {"client": request.downlink, "head": request.head_downlink}
    modules = {"client": model.client, "head": model.head}
    own = {name: travelling_state(module) for name, module in modules.items()}
    told = {n: followed_state(modules[n]) for n, way in ways.items() if way != WEIGHTS}
    came = {"client": request.weights, "head": request.head_weights}
    if request.base is None:
        for name, module in modules.items():
            load_travelling(module, unpack_state(came[name], own[name]))
        held: Held = {name: flat_values(state) for name, state in told.items()}
        if held_digest(held) != request.holds:
            raise WireError("The weights that came whole are not those that the request names.")
    else:
        kept = node.store.get(_HELD) or _built(node, request, [*told])
        if (digest := held_digest(kept)) != request.base:
            return StaleReply(request.round, digest)
        held = _RECENT.get(str(request.holds)) or _changed(kept, request, ways, walking)
        if held_digest(held) != request.holds:
            return StaleReply(request.round)
        for name, state in own.items():
            parts = told.get(name, {})
            _load(parts, unpack_state(_packed(held, name, parts), parts))
            rest = {key: value for key, value in state.items() if key not in parts}
            _load(rest, unpack_state(came[name], rest))
    if request.base != request.holds:
        node.store.put(_HELD, held, content=str(request.holds))
    _RECENT[str(request.holds)] = held
    _RECENT.move_to_end(str(request.holds))
    while len(_RECENT) > _RECENT_HELD:
        _RECENT.popitem(last=False)
    return None


def _built(node: Node, request: LocalRequest, names: list[str]) -> Held:
    """Return what a client holds that was sent nothing, or lost it: what it builds itself."""

    def build() -> Held:
        modules = {
            "client": node.ready(node.task.build(node.model_seed).client),
            "head": node.new_head(request.head),
        }
        return {name: flat_values(followed_state(modules[name])) for name in names}

    return node.memo(("built", request.head, *names), build)


def _packed(held: Held, name: str, parts: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {"float32": held[name]} if parts else {}


def _load(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def _changed(
    kept: Held, request: LocalRequest, ways: Mapping[str, str], walking: Walking | None
) -> Held:
    """Return what a client holds after the changes of a request."""
    held = dict(kept)
    walks = [name for name in held if ways.get(name) == SCALARS]
    for kind, data in blocks(request.changes or b""):
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
