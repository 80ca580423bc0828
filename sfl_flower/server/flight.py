"""Requests on their way: what waits to be sent, what is without a reply, and for how long."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from sfl_flower.server.roster import Member
from sfl_flower.wire import Request

__all__ = ["Clock", "Flight", "Sent", "keep_newest"]

SHORTEST_WAIT, LONGEST_WAIT = 0.002, 0.25
MOST_LATE = 4096
"""Requests whose replies are thrown away when they come after their round, at most."""
WAIT_SHARE = 0.1
"""Next wait over the time without a reply: what polling adds to an exchange at most."""


class Sent(NamedTuple):
    """A request, how often it was sent again, and names of what who answers it holds."""

    member: Member
    request: Request
    attempt: int = 0
    names: frozenset[bytes] = frozenset()


class Flight:
    """The requests of one set: those that wait to be sent, and those without a reply.

    Every operation takes the same time whatever the size of the set.

    Attributes
    ----------
    pending : dict of str to (Sent, float)
        By message id, the requests without a reply and when they were sent, the oldest first.
    """

    def __init__(self) -> None:
        self.pending: dict[str, tuple[Sent, float]] = {}
        self._queue: deque[Sent] = deque()
        self._open: Counter[Member] = Counter()

    def add(self, items: Iterable[Sent]) -> None:
        """Put requests behind those that wait to be sent."""
        for item in items:
            self._queue.append(item)
            self._open[item.member] += 1

    def take(self, most: int | None) -> list[Sent]:
        """Return the next requests to send, all of them for None; each is `sent` or `close`d."""
        count = len(self._queue) if most is None else min(most, len(self._queue))
        return [self._queue.popleft() for _ in range(count)]

    def sent(self, identifier: str, item: Sent) -> None:
        """Note that a request is on its way."""
        self.pending[identifier] = item, time.monotonic()

    def land(self, identifier: str) -> Sent | None:
        """Return the request that a reply belongs to, None for none; it is then sent or closed."""
        found = self.pending.pop(identifier, None)
        return None if found is None else found[0]

    def close(self, item: Sent) -> None:
        """Note that nothing more is expected of a request."""
        self._open[item.member] -= 1

    def waits(self, member: Member) -> bool:
        """Tell whether a request to a client waits to be sent, or for its reply."""
        return self._open[member] > 0

    def overdue(self, seconds: float, began: float) -> list[tuple[str, Sent]]:
        """Take out the requests without a reply for so long, and return them with their ids.

        Parameters
        ----------
        seconds : float
            How long a reply is waited for.
        began : float
            When waiting began, by `time.monotonic`; no request counts as waited for before.
        """
        now, found = time.monotonic(), []
        for identifier, (item, since) in self.pending.items():
            if now <= max(since, began) + seconds:
                break
            found.append((identifier, item))
        for identifier, _ in found:
            del self.pending[identifier]
        return found


def keep_newest(late: dict[str, None]) -> None:
    """Forget the oldest of the requests whose replies are late, where there are too many.

    Of clients that never answer there would be more each round.
    """
    for identifier in list(late)[: max(0, len(late) - MOST_LATE)]:
        del late[identifier]


class Clock:
    """Says how long to wait before the next look for replies."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Look again soon."""
        self._quiet_since = time.monotonic()

    def wait(self) -> None:
        """Sleep, the longer the longer nothing has arrived."""
        wait = WAIT_SHARE * (time.monotonic() - self._quiet_since)
        time.sleep(min(max(wait, SHORTEST_WAIT), LONGEST_WAIT))
