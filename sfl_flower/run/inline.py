"""The inline backend: the same app, strategies, clients and messages in one process.

For debugging, notebooks and quick comparisons.  A grid calls the ClientApp directly instead of
sending messages to Ray's workers; the results are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from sfl_flower.wire.flower import SUPERLINK, address, identity

__all__ = ["InlineGrid"]

FIRST_NODE = 1000
RAISED = 2
"""Flower's error code for a ClientApp that raised."""


class InlineGrid(Grid):
    """A grid whose nodes are calls of one ClientApp.

    Parameters
    ----------
    app : ClientApp
        Answers the messages.
    clients : int
        Number of nodes; node i holds partition i.
    run_id : int
        The id that contexts carry.
    """

    def __init__(self, app: ClientApp, clients: int, run_id: int = 1) -> None:
        self._app = app
        self._run_id = run_id
        self.nodes = [FIRST_NODE + index for index in range(clients)]
        self.contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config={"partition-id": index, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for index, node in enumerate(self.nodes)
        }
        self._replies: dict[str, Message] = {}
        self._ids = count(1)

    def set_run(self, run: Any) -> None:
        """Do nothing: the run is given at construction."""

    @property
    def run(self) -> Any:
        """Not available: there is no SuperLink."""
        raise NotImplementedError("The inline backend has no run record.")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not available: build a `Message`."""
        raise NotImplementedError("Build a flwr.app.Message instead.")

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to the ClientApp at once; replies wait to be pulled."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are there."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and return the replies."""
        return self.pull_messages(self.push_messages(list(messages)))

    def _push(self, message: Message) -> str:
        identifier = f"m{next(self._ids)}"
        address(message.metadata, message_id=identifier, run_id=self._run_id, src_node_id=SUPERLINK)
        reply = self.deliver(message)
        if reply is not None:
            address(reply.metadata, message_id=f"r{identifier}")
            self._replies[identifier] = reply
        return identifier

    def deliver(self, message: Message) -> Message | None:
        """Run the ClientApp on a message; as in Flower, an error leaves the state as it was."""
        node = message.metadata.dst_node_id
        context = self.contexts[node]
        before = RecordDict(dict(context.state))
        incoming = copy.copy(message)
        incoming.__dict__ = dict(message.__dict__)
        incoming.content = RecordDict(dict(message.content))
        try:
            with identity(None, None):  # as in Ray's workers: only replies can be made
                return self._app(incoming, context)
        except Exception as error:
            context.state = before
            return Message(Error(RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
