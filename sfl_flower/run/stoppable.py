"""A grid that can be taken away from whoever trains on it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from sfl_flower.errors import TrainingError

__all__ = ["StoppableGrid"]


class StoppableGrid(Grid):
    """Another grid, until it is stopped; from then on every use raises.

    Flower runs the ServerApp in a thread of its own and leaves it there when the simulation behind
    the grid is gone.  That thread would wait for clients until its deadlines pass, and keep the
    process alive.

    Parameters
    ----------
    grid : Grid
        Does the work.
    stopped : threading.Event
        Says that there is nobody left to talk to.
    news : threading.Event
        Set when messages were pushed.
    """

    def __init__(self, grid: Grid, stopped: threading.Event, news: threading.Event) -> None:
        self._grid = grid
        self._stopped, self._news = stopped, news

    def _live(self) -> Grid:
        if self._stopped.is_set():
            raise TrainingError("The simulation has ended.")
        return self._grid

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self._live().set_run(run)

    @property
    def run(self) -> Any:
        """The run."""
        return self._live().run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Build a message, as older releases of Flower do."""
        return self._live().create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes."""
        return self._live().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        pushed = self._live().push_messages(messages)
        self._news.set()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that are there."""
        return self._live().pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies."""
        return self._live().send_and_receive(messages, timeout=timeout)
