"""How heads that live on the server, one for each client, come down: whole, or by what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor, nn

from sfl_flower.server.downlink import Downlink
from sfl_flower.server.head_bank import HeadBank
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally
from sfl_flower.server.tensors import under
from sfl_flower.wire import StaleReply, pack_state
from sfl_flower.wire.downlink import WEIGHTS, flat_values, followed_state
from sfl_flower.wire.weights import Packed

__all__ = ["HeadDownlink"]

_PREFIX = "head_downlink."


class HeadDownlink:
    """What each client holds of its own head, and what it is sent to come up to it.

    A head comes down when it changed and the client is not known to hold it: whole, or, in an
    encoding, as the difference to what this client holds.  Aligned heads stay exact here, and a
    client holds the sum of what it was sent (`Downlink`).

    Parameters
    ----------
    bank : HeadBank
        The heads.
    way : str
        "weights" or the name of an encoding.
    common : nn.Module
        The head that every client starts from.
    build : callable
        Gives the head as clients build it; where that is the common one, the first difference is
        to it.
    """

    def __init__(
        self, bank: HeadBank, way: str, common: nn.Module, build: Callable[[], nn.Module]
    ) -> None:
        self._bank, self._way, self._build = bank, way, cache(build)
        self._first = flat_values(followed_state(common))
        self._whole: dict[Member, str] = {}
        self._downs: dict[int, Downlink] = {}

    def plan(self, member: Member, tally: Tally) -> tuple[Packed, dict[str, Any]]:
        """Return what comes of a client's head whole, and fields of an `FSLSAGERequest`."""
        client = member.partition
        if self._way == WEIGHTS:
            digest = self._bank.digest(client)
            held = self._whole.get(member) == digest
            return ({} if held else pack_state(self._bank.state(client))), {"digest": digest}
        if client not in self._downs:
            self._begin(client, tally)
        plan = self._downs[client].plans({member: 1})[member]
        return plan.head_weights, {
            "head_downlink": self._way,
            "digest": plan.told["holds"],
            "head_base": plan.told.get("base"),
            "head_changes": plan.told.get("changes"),
        }

    def changed(self, client: int, tally: Tally) -> None:
        """Note that a client's head is no longer what it was."""
        self._bank.changed(client)
        if client in self._downs:
            self._downs[client].advance(tally)
        elif self._way != WEIGHTS:
            self._begin(client, tally)

    def _begin(self, client: int, tally: Tally) -> None:
        """Follow what a client holds, and bring it to the head as it is."""
        down = self._followed(client)
        if not self._is_first(self._bank.head(client).module):
            down.advance(tally)

    def _followed(self, client: int) -> Downlink:
        """Return what follows a client's head, from the one that it built or is sent first."""
        built = self._build()
        self._downs[client] = Downlink(
            {"head": self._bank.head(client).module},
            {"head": self._way},
            ("head",),
            first=lambda: {"head": built},
            held={"head": self._first} if self._is_first(built) else None,
            who=f"Client {client} downloads",
        )
        return self._downs[client]

    def _is_first(self, head: nn.Module) -> bool:
        return np.array_equal(flat_values(followed_state(head)), self._first)

    def synced(self, member: Member) -> None:
        """Note that a client showed that it holds what the request named."""
        if self._way == WEIGHTS:
            self._whole[member] = self._bank.digest(member.partition)
        else:
            self._downs[member.partition].synced([member])

    def lost(self, member: Member, digest: str) -> None:
        """Note what a client says that it holds of its head, "" for nothing."""
        if self._way == WEIGHTS:
            self._whole[member] = digest
        elif member.partition in self._downs:
            self._downs[member.partition].lost(member, StaleReply(-1, digest))

    def tensors(self) -> dict[str, Tensor]:
        """Return what goes on from a checkpoint: what each client holds of its head."""
        return {
            f"{_PREFIX}{client}.{name}": value
            for client, down in self._downs.items()
            for name, value in down.tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; every client then downloads its head once."""
        parts: dict[int, dict[str, Tensor]] = {}
        for key, value in under(_PREFIX, tensors).items():
            client, name = key.split(".", 1)
            parts.setdefault(int(client), {})[name] = value
        self._whole.clear()
        self._downs.clear()
        if self._way == WEIGHTS:
            return
        for number, own in parts.items():
            self._followed(number).load_tensors(own)
