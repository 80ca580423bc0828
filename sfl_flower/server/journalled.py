"""What methods with a journal share: asking clients in step, and the anchor exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sfl_flower.errors import WireError
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.batched import check_together, groups, run_together
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.mirror import Mirror
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.sequential import learn_in_turn
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.server.trainer import Gradients
from sfl_flower.server.turns import later_passes, turns
from sfl_flower.split import moving_statistics
from sfl_flower.training.modes import buffers_put_back, eval_mode
from sfl_flower.wire import Reader, Reply, Request, StaleReply, is_stale, pack_state
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest
from sfl_flower.zo import Journal

__all__ = ["JournalledStrategy"]

R = TypeVar("R", bound=Reply)


class JournalledStrategy(SplitStrategy):
    """Base of methods whose clients follow a journal; most send the anchor's smashed data."""

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
    ) -> dict[Member, R]:
        """Send requests with a sync in them; clients that lost their state get theirs again.

        Parameters
        ----------
        cohort : list of Member
            Whom to ask.
        exchange : Exchange
            Carries the messages.
        request : callable
            Makes a client's request, with `self.mirror.sync(member)` in it.
        read : callable
            Turns the content of a reply into a message.
        check : callable
            Raises where a reply breaks a rule of the method.

        Returns
        -------
        dict[Member, R]
            Valid replies in the order of the cohort, of clients at the current version.
        """

        def either(reader: Reader) -> R | StaleReply:
            return (StaleReply.from_reader if is_stale(reader.content) else read)(reader)

        def rules(reply: R | StaleReply) -> None:
            if not isinstance(reply, StaleReply):
                check(reply)

        answers = exchange.send({member: request(member) for member in cohort}, either, rules)
        stale = {m: reply for m, reply in answers.items() if isinstance(reply, StaleReply)}
        if stale:
            for member, reply in stale.items():
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
        return found

    def anchors(
        self,
        round: int,
        cohort: list[Member],
        exchange: Exchange,
        minibatches: int,
    ) -> dict[Member, ForwardReply]:
        """Collect smashed data and labels of a round; clients that lost their state get it again.

        Parameters
        ----------
        round : int
            The round.
        cohort : list of Member
            Whom to ask.
        exchange : Exchange
            Carries the messages.
        minibatches : int
            Mini-batches per client.
        """
        own = self._moving()
        statistics = pack_state(own)

        def check(reply: ForwardReply) -> None:
            self.expect_z(reply.z)
            received_state(reply.statistics, own)

        def request(member: Member) -> ForwardRequest:
            return ForwardRequest(
                round=round,
                batch_size=self.config.batch_size,
                minibatches=minibatches,
                setup=self.setup,
                sync=self.mirror.sync(member),
                meter=self.metering(round),
                statistics=statistics,
            )

        found = self.ask_in_step(
            cohort,
            exchange,
            request,
            ForwardReply.from_reader,
            check,
        )
        self.book_usage(reply.usage for reply in found.values())
        brought = {member: reply.z for member, reply in found.items()}
        return {m: found[m] for m in self.screening.keep(SMASHED, brought, exchange.tally)}

    def move_statistics(self, used: Mapping[Member, ForwardReply], exchange: Exchange) -> None:
        """Load the mean over clients of BatchNorm's running statistics, where they move.

        Parameters
        ----------
        used : mapping of Member to ForwardReply
            The replies of the round that are used.
        exchange : Exchange
            Is told of a mean that is taken back.
        """
        own = self._moving()
        if not own or not used:
            return
        states = [received_state(reply.statistics, own) for reply in used.values()]
        weights = [client_weight(self.config.mean, len(reply.y)) for reply in used.values()]
        with self.averaging(exchange):
            for name, value in self.aggregator.states(states, weights).items():
                own[name].copy_(value)

    def _moving(self) -> dict[str, Tensor]:
        """Return the running statistics that anchors move: the client half's own tensors."""
        eval_mode = self.settings.client_mode == "eval"
        return {} if eval_mode else moving_statistics(self.client_half)

    @staticmethod
    def batches(
        member: Member, reply: ForwardReply
    ) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[int, int, int]]]:
        """Yield smashed data, labels and (round, partition, step) of each mini-batch."""
        end = 0
        for step, size in enumerate(reply.sizes.tolist()):
            start, end = end, end + size
            yield reply.z[start:end], reply.y[start:end], (reply.round, member.partition, step)

    def backward(self, member: Member, reply: ForwardReply, step: bool) -> list[Gradients]:
        """Run a client's mini-batches through the server half.

        Parameters
        ----------
        member, reply : Member, ForwardReply
            The client, and what it sent.
        step : bool
            Whether the server half steps after each of them.

        Returns
        -------
        list of Gradients
            Of each mini-batch, at the weights before its own step.

        Raises
        ------
        WireError
            If one of them cannot be used; the server half has then not moved.
        """
        batches = self.batches(member, reply)
        if step:
            return learn_in_turn([self.server], batches)
        with buffers_put_back(self.server.module):
            return [self.server.gradients(*batch) for batch in batches]

    def check_pace(self) -> None:
        """Refuse a `server_batch` that would not give what one mini-batch after another does.

        Raises
        ------
        ConfigError
            If samples of the server half bear on one another's outputs.
        """

        def z(count: int) -> Tensor:
            with torch.no_grad(), eval_mode(self.client_half):
                smashed: Tensor = self.client_half(self.examples(count)[0])
            return smashed

        if self._at_once:
            check_together(self.server, z, self.config.seed, self._at_once, self.task.name)

    @property
    def _at_once(self) -> int:
        """Most samples that the server half runs at one time; 0 for one mini-batch."""
        return int(getattr(self.settings, "server_batch", 0))

    def learned(
        self, round: int, anchors: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> Iterator[tuple[Member, list[Gradients]]]:
        """Run the mini-batches of a round through the server half, client after client.

        Where the server half steps after every mini-batch, clients come in an order drawn anew,
        else their gradients are added, each times what its client counts; the step is the
        caller's.

        Parameters
        ----------
        round : int
            The round.
        anchors : mapping of Member to ForwardReply
            What clients sent.
        exchange : Exchange
            Counts the replies that cannot be used; they move nothing.

        Yields
        ------
        member : Member
            A client whose reply is used.
        found : list of Gradients
            λ and loss of each of its mini-batches, at the weights before its own step.
        """
        if self.settings.server_pace == "batch":
            for member in turns(self.config.seed, round, list(anchors)):
                try:
                    found = self.backward(member, anchors[member], step=True)
                except WireError as error:
                    exchange.tally.reject(member, error)
                    continue
                yield member, found
            return
        members = list(anchors)
        for group in groups([len(anchors[member].y) for member in members], self._at_once):
            yield from self._added({m: anchors[m] for m in members[group]}, exchange)

    def _added(
        self, replies: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> Iterator[tuple[Member, list[Gradients]]]:
        """Add the gradients of some clients, of all their mini-batches at one time if so wanted."""
        batches = {member: list(self.batches(member, reply)) for member, reply in replies.items()}
        counts = {m: client_weight(self.config.mean, len(r.y)) for m, r in replies.items()}
        every = [(batch, counts[member]) for member, own in batches.items() for batch in own]
        if self._at_once and len(every) > 1:
            given, shares = zip(*every, strict=True)
            try:
                found, weights = run_together(self.server, given, shares, self._at_once)
            except WireError as error:
                exchange.tally.note(
                    f"The mini-batches of {len(replies)} clients run one after another instead of "
                    f"together: {error}"
                )
            else:
                parts = iter(found)
                for member, own in batches.items():
                    yield member, [next(parts) for _ in own]
                self.server.add_sum(weights)
                return
        for member, reply in replies.items():
            try:
                found = self.backward(member, reply, step=False)
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            yield member, found  # λ is sent before the gradients are added
            self.server.add(found, counts[member])

    def pass_again(
        self, round: int, used: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> int:
        """Take the later of `server_passes` over the mini-batches of a round; return the steps.

        Parameters
        ----------
        round : int
            The round.
        used : mapping of Member to ForwardReply
            The replies that were used in the first pass.
        exchange : Exchange
            Is told of mini-batches that are left out.
        """
        passes = int(self.settings.control.get("server_passes", 1))
        if passes == 1:
            return 0
        batches = {member: list(self.batches(member, reply)) for member, reply in used.items()}
        return later_passes(self.server, batches, self.config.seed, round, passes, exchange.tally)
