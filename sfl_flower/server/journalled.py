"""What methods with a journal share: clients that are asked in step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from sfl_flower.server.exchange import Exchange
from sfl_flower.server.mirror import Mirror
from sfl_flower.server.roster import Member
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.wire import Reader, Reply, Request, StaleReply, is_stale
from sfl_flower.zo import Journal

__all__ = ["JournalledStrategy"]

R = TypeVar("R", bound=Reply)


class JournalledStrategy(SplitStrategy):
    """Base of methods whose clients follow a journal."""

    mirror: Mirror

    def load_client(self, state: Mapping[str, Tensor]) -> None:
        """Put client-half weights in place before the first round; the journal starts anew."""
        super().load_client(state)
        self.prepare()

    @property
    def version(self) -> int:
        """Number of updates of the client half."""
        return self.mirror.version

    @property
    def digest(self) -> str:
        """The journal's running digest, in hex."""
        return self.mirror.digest

    @property
    def journal(self) -> Journal:
        """The journal that clients follow."""
        return self.mirror.journal

    def ask_in_step(
        self,
        cohort: list[Member],
        exchange: Exchange,
        request: Callable[[Member], Request],
        read: Callable[[Reader], R],
        check: Callable[[R], None],
        beside: Mapping[Member, Request] | None = None,
    ) -> dict[Member, R]:
        """Send requests with a sync in them; clients that lost their state get theirs again.

        Parameters
        ----------
        cohort : list of Member
            Whom to ask.
        exchange : Exchange
            Carries the messages.
        request : callable
            Makes a client's request, with `self.mirror.sync(member)` in it; a second time for a
            client that lost its state.
        read : callable
            Turns the content of a reply into a message.
        check : callable
            Raises where a reply breaks a rule of the method.
        beside : mapping of Member to Request, optional
            Requests to others, without a sync, that go out at the same time.

        Returns
        -------
        dict[Member, R]
            Valid replies in the order of the cohort, of clients at the current version, and then
            those to what went out beside.
        """
        beside = beside or {}

        def either(reader: Reader) -> R | StaleReply:
            return (StaleReply.from_reader if is_stale(reader.content) else read)(reader)

        def rules(reply: R | StaleReply) -> None:
            if not isinstance(reply, StaleReply):
                check(reply)

        first = {member: request(member) for member in cohort}
        answers = exchange.send({**first, **beside}, either, rules)
        stale = {m: answers[m] for m in cohort if isinstance(answers.get(m), StaleReply)}
        if stale:
            for member, reply in stale.items():
                assert isinstance(reply, StaleReply)
                self.mirror.lost(member, reply)
            answers |= exchange.send({member: request(member) for member in stale}, either, rules)
        found: dict[Member, R] = {}
        for member in cohort:
            answer = answers.get(member)
            if isinstance(answer, StaleReply):
                exchange.tally.fail(member, "it cannot be brought to the current version.")
            elif answer is not None:
                found[member] = answer
                self.mirror.synced(member)
        for member in beside:
            answer = answers.get(member)
            if isinstance(answer, StaleReply):
                exchange.tally.fail(member, "it lost its state, and with it what it was to probe.")
            elif answer is not None:
                found[member] = answer
        return found
