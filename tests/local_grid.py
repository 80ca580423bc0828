"""A grid that does to messages what networks and clients do: lose, delay, repeat, damage.

It is the inline grid with Flower's protobuf encoding in between, replies in random order, and
faults for chosen clients, rounds and messages.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from sfl_flower.methods import METHODS
from sfl_flower.run.inline import InlineGrid
from sfl_flower.wire.draft import RAW
from sfl_flower.wire.flower import SUPERLINK, address
from sfl_flower.wire.terms import with_terms

serde: Any
try:
    from flwr.common import serde  # tests only: not public
except ImportError:  # pragma: no cover
    serde = None

__all__ = ["Fault", "LocalGrid", "changed", "roundtrip", "serde", "values"]

DIED, RAISED, UNAVAILABLE = 0, 2, 5
Change = Callable[[RecordDict], RecordDict]


def roundtrip(content: RecordDict) -> RecordDict:
    """Encode and decode through Flower; what it cannot serialise fails here, and nothing is shared.

    An empty record dict stays empty.
    """
    if serde is None:
        return copy.deepcopy(content)
    decoded: RecordDict = serde.recorddict_from_proto(serde.recorddict_to_proto(content))
    return decoded


def changed(
    content: RecordDict,
    arrays: dict[str, np.ndarray | Array | None] | None = None,
    config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> RecordDict:
    """Return the content with entries replaced, added, or (None) removed."""

    def merge(old: Any, new: dict[str, Any] | None) -> dict[str, Any]:
        merged = {**dict(old), **(new or {})}
        return {name: value for name, value in merged.items() if value is not None}

    found = merge(content["arrays"], arrays)
    return RecordDict(
        {
            "arrays": ArrayRecord(
                {k: v if isinstance(v, Array) else Array(v) for k, v in found.items()}
            ),
            "config": ConfigRecord(merge(content["config"], config)),
            "metrics": MetricRecord(merge(content["metrics"], metrics)),
        }
    )


def kind_of(message: Message) -> str:
    """Return the action of a message, without the name of the method that it is of."""
    action = message.metadata.message_type.partition(".")[2]
    names = [name for name in METHODS if action.startswith(f"{name}_")]
    return action.removeprefix(f"{max(names, key=len)}_") if names else action


def values(array: Array) -> np.ndarray:
    """Return what an array of a message holds, with a header or without one."""
    if array.stype != RAW:
        return array.numpy()
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes
    ----------
    kind : str
        "drop": the message never arrives. "mute": it does, the reply never. "late": the reply
        comes in the next round. "twice": the reply comes twice. "raise": the client raises.
        "unavailable": code 5 from the SuperLink. "die": the worker dies. "forget": the node loses
        its state after the message. "rollback": the state stays as it was before the message.
        "change": the reply's content goes through `change`.
    clients, rounds : sets of int, or None for all
        Partition numbers and rounds.
    types : str
        The action that is struck, as `kind_of` has it; empty for all of a method.
    times : int
        How often it happens.
    """

    kind: str
    clients: frozenset[int] | set[int] | None = None
    rounds: frozenset[int] | set[int] | range | None = None
    types: str = ""
    times: int = 10**9
    change: Change | None = None

    def hits(self, message: Message, client: int) -> bool:
        """Tell whether this message is struck."""
        config = message.content.config_records.get("config")
        round = int(config.get("round", 0)) if config is not None else 0  # type: ignore[arg-type]
        return (
            (self.clients is None or client in self.clients)
            and (self.rounds is None or round in self.rounds)
            and (kind_of(message) == self.types if self.types else kind_of(message) != "join")
        )


class LocalGrid(InlineGrid):
    """An inline grid with faults.

    Parameters
    ----------
    app : ClientApp
        Answers the messages.
    clients : int
        Number of nodes.
    faults : iterable of Fault
        What goes wrong.
    seed : int
        Order of the replies.
    """

    def __init__(
        self, app: ClientApp, clients: int, faults: Iterable[Fault] = (), seed: int = 0
    ) -> None:
        super().__init__(app, clients)
        self.faults = list(faults)
        self.log: Counter[tuple[str, int]] = Counter()
        self.late: dict[str, Message] = {}
        self.requests: list[tuple[str, int, Any]] = []
        self.asked: list[tuple[str, int, Any]] = []  # as `requests`, with the terms they name
        self.replies: list[tuple[str, int, Any]] = []
        self._rng = random.Random(seed)
        self._twice: set[str] = set()
        self._round = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take a list of messages; late replies of an older round become available."""
        if not isinstance(messages, (list, tuple)):
            raise TypeError("pass a list: the network grids iterate over it twice")
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return what is there, in no particular order, some of it twice."""
        ready = super().pull_messages(message_ids)
        ready += [m for m in ready if m.metadata.reply_to_message_id in self._twice]
        self._rng.shuffle(ready)
        return ready

    def _push(self, message: Message) -> str:
        config = message.content.config_records.get("config")
        round = int(config.get("round", 0)) if config is not None else 0  # type: ignore[arg-type]
        if round > self._round:
            self._round = round
            self._replies.update(self.late)
            self.late.clear()
        return super()._push(message)

    def _strike(self, kind: str, message: Message, client: int) -> Fault | None:
        for index, fault in enumerate(self.faults):
            if fault.kind == kind and fault.times > 0 and fault.hits(message, client):
                self.faults[index] = replace(fault, times=fault.times - 1)
                return fault
        return None

    def deliver(self, message: Message) -> Message | None:
        """Pass a message through the wire, the faults and the ClientApp."""
        node, kind = message.metadata.dst_node_id, kind_of(message)
        client = self.nodes.index(node)
        self.log[kind, client] += 1
        content = roundtrip(message.content)
        self.requests.append((kind, client, content))
        self.asked.append((kind, client, with_terms(self.contexts[node], content) or content))
        if self._strike("drop", message, client):
            return None
        if self._strike("die", message, client):
            return Message(Error(DIED, "ActorDiedError"), reply_to=message)
        if self._strike("raise", message, client):
            return Message(Error(RAISED, "ValueError: a test says so"), reply_to=message)
        if self._strike("unavailable", message, client):
            reply = Message(Error(UNAVAILABLE, "node unavailable"), reply_to=message)
            address(reply.metadata, src_node_id=SUPERLINK)
            return reply
        return self._answer(message, client)

    def _answer(self, message: Message, client: int) -> Message | None:
        context = self.contexts[message.metadata.dst_node_id]
        before = roundtrip(context.state)
        context.state = roundtrip(context.state)
        sent = copy.copy(message)
        sent.__dict__ = dict(message.__dict__)
        sent.content = roundtrip(message.content)
        reply = super().deliver(sent)
        context.state = roundtrip(context.state)
        if self._strike("forget", message, client):
            context.state = RecordDict()
        if self._strike("rollback", message, client):
            context.state = before
        if reply is None or self._strike("mute", message, client):
            return None
        if reply.has_content():
            fault = self._strike("change", message, client)
            content = roundtrip(reply.content)
            if fault is not None and fault.change is not None:
                content = fault.change(content)
            reply.content = content
            self.replies.append((kind_of(message), client, content))
        identifier = message.metadata.message_id
        if self._strike("twice", message, client):
            self._twice.add(identifier)
        if self._strike("late", message, client):
            address(reply.metadata, message_id=f"r{identifier}")
            self.late[identifier] = reply
            return None
        return reply
