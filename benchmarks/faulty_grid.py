"""An inline grid whose clients come and go, and whose replies are lost, late, doubled or NaN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from sfl_flower.data.seeding import generator
from sfl_flower.run.inline import InlineGrid
from sfl_flower.wire.flower import address

__all__ = ["FAULTS", "FaultyGrid"]

FAULTS = ("lost", "late", "doubled", "nan")
"""What happens to a reply: it never comes, comes in the next round, twice, or with a NaN."""


class FaultyGrid(InlineGrid):
    """A grid with faults that follow from a seed, the round, the client and the message.

    Parameters
    ----------
    app : ClientApp
        Answers the messages.
    clients : int
        Number of nodes.
    share : float
        Probability that something happens to a reply of a training round, 0 to 1.
    seed : int
        Of the faults.
    faults : sequence of str
        What may happen, each as often, of `FAULTS`.
    absent : float
        Probability that a node is not there in a round, 0 to 1.

    Attributes
    ----------
    struck : Counter of str
        How often each fault happened, and how many replies there were (``replies``).
    whole : bool
        Whether from now on all nodes are there and nothing happens to replies.
    """

    def __init__(
        self,
        app: ClientApp,
        clients: int,
        share: float,
        seed: int,
        faults: Sequence[str] = FAULTS,
        absent: float = 0.0,
    ) -> None:
        super().__init__(app, clients)
        self.struck: Counter[str] = Counter()
        self.whole = False
        self._share, self._seed, self._faults = share, seed, faults
        self._absent, self._round = absent, 0
        self._late: dict[str, Message] = {}
        self._twice: set[str] = set()

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are there; before training, all are."""
        if self.whole or not (self._absent and self._round):
            return list(self.nodes)
        here = generator("absent", self._seed, self._round).random(len(self.nodes)) >= self._absent
        return [node for node, there in zip(self.nodes, here, strict=True) if there]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are there, some of them twice."""
        ready = super().pull_messages(message_ids)
        again = [m for m in ready if m.metadata.reply_to_message_id in self._twice]
        self._twice.difference_update(m.metadata.reply_to_message_id for m in again)
        return [*ready, *again]

    def deliver(self, message: Message) -> Message | None:
        """Pass a message to its client and the reply back, if nothing happens to it."""
        reply = super().deliver(message)
        kind, _, action = message.metadata.message_type.partition(".")
        if reply is None or kind != "train" or not reply.has_content() or self.whole:
            return reply
        config = message.content.config_records["config"]
        round, node = int(str(config["round"])), message.metadata.dst_node_id
        if round != self._round:
            self._round = round
            self._replies |= self._late
            self._late.clear()
        self.struck["replies"] += 1
        step = str(config.get("step", 0))
        draw = generator("fault", self._seed, round, node, action, step)
        if draw.random() >= self._share:
            return reply
        fault = self._faults[int(draw.integers(len(self._faults)))]
        self.struck[fault] += 1
        identifier = message.metadata.message_id
        if fault == "lost":
            return None
        if fault == "late":
            address(reply.metadata, message_id=f"r{identifier}")
            self._late[identifier] = reply
            return None
        if fault == "doubled":
            self._twice.add(identifier)
        else:
            reply.content = _with_nan(reply.content)
        return reply


def _with_nan(content: RecordDict) -> RecordDict:
    """Return the content with NaN for the last number of its first array of floats."""
    arrays = dict(content.array_records["arrays"])
    for name, array in arrays.items():
        if array.dtype == "float32" and array.data:
            data = array.data[:-4] + np.float32(np.nan).tobytes()
            arrays[name] = Array(array.dtype, array.shape, array.stype, data)
            break
    found = RecordDict(dict(content))
    found["arrays"] = ArrayRecord(arrays)
    return found
