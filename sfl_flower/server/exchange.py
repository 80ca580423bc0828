"""Requests out, replies in: every reply is pulled, checked, booked and put in order.

Flower returns replies in no particular order, errors among them, and keeps replies that nobody
pulls in memory.  An exchange hides all of that: the caller gives requests by client and gets the
valid replies by client, in the order of the requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from sfl_flower.errors import SflError, WireError
from sfl_flower.server.flight import Clock, Flight, Sent, keep_newest
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally
from sfl_flower.wire import Ledger, Reader, Reply, Request, check_answer, content_bytes, lacks_terms
from sfl_flower.wire.terms import terms_digest

__all__ = ["Exchange"]

R = TypeVar("R", bound=Reply)


WORKER_DIED = (0, 8)
"""Flower's error codes for a worker process that died; the request is sent once more."""
RESENDS = 2


class Exchange:
    """Sends requests to clients and collects their replies.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    ledger : Ledger
        Books every message.
    timeout : float
        Seconds to wait for the reply to a request.
    late : dict of str to None
        Ids of requests without a reply in time, the oldest first; what comes is pulled and thrown
        away.
    method : str
        Name of the method, which is part of the messages' types.
    keys : callable
        Gives a client's key by its partition; each request carries that of whom it goes to.
    held : dict of set of bytes, optional
        By node, what it has answered to and so holds: terms (`sfl_flower.wire.terms`), and what is
        carried once (`Carried`).
    wave : int
        Requests without a reply at one time, at most; the others wait for their turn. 0 for all.
    """

    def __init__(
        self,
        grid: Grid,
        ledger: Ledger,
        timeout: float,
        late: dict[str, None],
        method: str,
        keys: Callable[[int], str],
        held: dict[int, set[bytes]] | None = None,
        wave: int = 0,
    ) -> None:
        self.tally = Tally()
        self._method = method
        self._keys = keys
        self._grid = grid
        self._ledger = ledger
        self._timeout = timeout
        self._late = late
        self._held = {} if held is None else held
        self._wave = wave
        self._now, self._next = Flight(), Flight()
        self._order: list[Member] = []

    def send(
        self,
        requests: Mapping[Member, Request],
        read: Callable[[Reader], R],
        check: Callable[[R], None] | None = None,
    ) -> dict[Member, R]:
        """Send requests and return the valid replies in their order; see `collect`."""
        self.push(requests)
        return self.collect(read, check)

    def push(self, requests: Mapping[Member, Request]) -> None:
        """Send requests without waiting; clients begin at once, as far as the wave allows."""
        self._order.extend(requests)
        self._next.add(Sent(member, request) for member, request in requests.items())
        self._fill()

    def _fill(self) -> None:
        """Send what the wave has room for, what is collected now before what was pushed since."""
        for flight in (self._now, self._next):
            while True:
                flying = len(self._now.pending) + len(self._next.pending)
                items = flight.take(max(0, self._wave - flying) if self._wave else None)
                if not items:
                    break
                self._send(items, flight)

    def _send(self, items: Iterable[Sent], flight: Flight) -> None:
        sent = []
        for item in items:
            member, request = item.member, item.request
            held = self._held.get(member.node_id, set())
            try:
                draft = request.addressed(self._keys(member.partition)).draft(held=held)
            except WireError as error:  # a value that the run's encoding cannot hold
                flight.close(item)
                self.tally.fail(member, str(error))
                continue
            terms = terms_digest(draft.terms)
            content = draft.content(brief=terms in held)
            self._ledger.record("down", draft.booked, content_bytes(content))
            message = Message(
                content=content,
                dst_node_id=member.node_id,
                message_type=request.message_type(self._method),
            )
            sent.append((message, item._replace(names=frozenset({terms, *draft.once}))))
        if not sent:
            return
        # The network grids iterate twice, so a list; ids are written into the messages on push.
        accepted = set(self._grid.push_messages([message for message, _ in sent]))
        for message, item in sent:
            if message.metadata.message_id in accepted:
                flight.sent(message.metadata.message_id, item)
            else:
                flight.close(item)
                self.tally.fail(
                    item.member, "Flower did not accept the request (is it too large?)."
                )

    def collect(
        self, read: Callable[[Reader], R], check: Callable[[R], None] | None = None
    ) -> dict[Member, R]:
        """Wait for the replies to everything pushed so far.

        A reply is read, held against its request (`check_answer`), and checked by the method.
        Whatever that raises refuses the reply, with its reason in `tally`.

        Parameters
        ----------
        read : callable
            Turns what arrived into a message, `Reply.from_reader` of some kind.
        check : callable, optional
            Raises where a reply breaks a rule of the method.

        Returns
        -------
        dict[Member, R]
            Valid replies, in the order of the requests; the rest is in `tally`.
        """
        order, self._order = self._order, []
        return dict(self.in_turn(order, read, check))

    def in_turn(
        self,
        order: Iterable[Member],
        read: Callable[[Reader], R],
        check: Callable[[R], None] | None = None,
    ) -> Iterator[tuple[Member, R]]:
        """Yield the replies to everything pushed so far, one after another.

        A reply comes out as soon as it and those before it in the order are there. What the caller
        pushes in between belongs to the next call.

        Parameters
        ----------
        order : iterable of Member
            The clients that were sent a request, in the order wanted.
        read, check : callable
            As for `collect`.

        Yields
        ------
        member : Member
            The client; those without a valid reply are left out, and in `tally`.
        reply : R
            Its reply.
        """
        flight = self._now = self._next
        self._next, self._order = Flight(), []
        found: dict[Member, R] = {}
        self._drop_late()
        clock, began = Clock(), time.monotonic()
        for member in order:
            clock.restart()  # the caller may have worked since the last reply
            while flight.waits(member):
                arrived = list(self._grid.pull_messages(list(flight.pending)))
                for message in arrived:
                    self._receive(message, read, check, found, flight)
                if arrived:
                    clock.restart()
                else:
                    self._give_up(flight, began)
                self._fill()
                if flight.waits(member):
                    clock.wait()
            if member in found:
                yield member, found.pop(member)

    def _receive(
        self,
        message: Message,
        read: Callable[[Reader], R],
        check: Callable[[R], None] | None,
        found: dict[Member, R],
        flight: Flight,
    ) -> None:
        # The source of an error reply may be the SuperLink: only the request's id tells the client.
        item = flight.land(message.metadata.reply_to_message_id)
        if item is None:
            return
        member, request = item.member, item.request
        if message.has_error():
            code, reason = message.error.code, message.error.reason or "no reason given"
            if code in WORKER_DIED and item.attempt < RESENDS:
                # Waiting for a process to be given up takes Flower minutes: the notes say why.
                why = f"{_last_line(reason)} (Flower error {code})"
                self.tally.note(f"Client {member.partition} is asked again: {why}")
                self._send([item._replace(attempt=item.attempt + 1)], flight)
            else:
                flight.close(item)
                self.tally.fail(member, f"{_last_line(reason)} (Flower error {code})")
            return
        held = self._held.setdefault(member.node_id, set())
        if lacks_terms(message.content) and not held.isdisjoint(item.names):
            held.clear()
            self._ledger.record("up", {}, content_bytes(message.content))
            self._send([item], flight)
            return
        flight.close(item)
        held.update(item.names)
        try:
            reader = Reader(message.content, "reply", request.encodings)
            reply = read(reader)
            check_answer(reply, request, member.samples)
            if check is not None:
                check(reply)
        except Exception as error:  # one client must not end the run, whatever it sent
            # It crossed the network all the same.
            self._ledger.record("up", {}, content_bytes(message.content))
            self.tally.reject(member, _reason(error))
            return
        self._ledger.record("up", reader.booked, content_bytes(message.content))
        found[member] = reply

    def _give_up(self, flight: Flight, began: float) -> None:
        for identifier, item in flight.overdue(self._timeout, began):
            flight.close(item)
            self._late[identifier] = None
            self.tally.fail(item.member, f"no reply within {self._timeout:g} s.")

    def _drop_late(self) -> None:
        if self._late:
            for message in self._grid.pull_messages(list(self._late)):
                self._late.pop(message.metadata.reply_to_message_id, None)
            keep_newest(self._late)


def _reason(error: Exception) -> str:
    """Return why a reply cannot be used, in one line: a client may have written part of it."""
    if isinstance(error, SflError):
        return str(error)
    return f"it cannot be read ({type(error).__name__}: {_last_line(str(error))})."


def _last_line(reason: str) -> str:
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given"
