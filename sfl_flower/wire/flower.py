"""The one place that touches what Flower does not promise to keep.

From flwr 1.38 a fresh ``Message`` reads the identity of the task it is made in from the process.
Flower sets it in its own processes; code that stands in for Flower in one process (the inline
backend) has to set it itself.  Before 1.38 there is nothing to do.  And the simulation looks for
requests by the clock; here it is told of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from time import perf_counter
from typing import Any

__all__ = ["SUPERLINK", "address", "identity", "promptly"]

SUPERLINK = 1
"""The node id of the SuperLink."""
_LOOKS = "add_messages_to_queue"


@contextmanager
def identity(run_id: int | None, node_id: int | None) -> Iterator[None]:
    """Set the identity that new messages carry, for the length of a block; None unsets it."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        yield
        return
    names = ("_run_id", "_node_id", "_task_id")  # the public getters raise while unset
    saved = [getattr(TaskIdentity, name) for name in names]
    values = (run_id, node_id, None if run_id is None else 1)
    for name, value in zip(names, values, strict=True):
        setattr(TaskIdentity, name, value)
    try:
        yield
    finally:
        for name, value in zip(names, saved, strict=True):
            setattr(TaskIdentity, name, value)


def address(metadata: Any, **fields: int | str) -> None:
    """Write ids into a message's metadata, as Flower's own grids do on push."""
    for name, value in fields.items():
        metadata.__dict__[f"_{name}"] = value


@contextmanager
def promptly(news: Event) -> Iterator[None]:
    """Inside, a simulation that begins hands on requests when there are news.

    A thread of Flower's looks for requests of all nodes, then waits a tenth of a second on the
    event that ends the simulation, and so each exchange waits for its next look. Here that thread
    gets an event of which news end the wait. Where a release of Flower has no such thread, it looks
    as ever.

    Parameters
    ----------
    news : Event
        To be set whenever requests were pushed.
    """
    from flwr.server.superlink.fleet.vce import vce_api  # imports Ray

    looks = getattr(vce_api, _LOOKS, None)
    if looks is None:
        yield
        return

    def told(value: Any) -> Any:
        return _Told(value, news) if isinstance(value, Event) else value

    def run(*args: Any, **kwargs: Any) -> None:
        looks(*map(told, args), **{name: told(value) for name, value in kwargs.items()})

    setattr(vce_api, _LOOKS, run)
    try:
        yield
    finally:
        setattr(vce_api, _LOOKS, looks)


class _Told:
    """An event that ends something, and whose waits news end as well."""

    def __init__(self, ends: Event, news: Event) -> None:
        self._ends, self._news = ends, news
        self._since = perf_counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ends, name)

    def wait(self, timeout: float = 0.1) -> bool:
        # At least as long as the last look took: with many nodes it would else look all the time.
        rest = min(perf_counter() - self._since, timeout)
        if not self._ends.wait(rest):
            self._news.wait(timeout - rest)
        self._news.clear()  # before the look, which finds all that was pushed until then
        self._since = perf_counter()
        return self._ends.is_set()
