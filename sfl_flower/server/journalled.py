"""What methods with a journal share: asking clients in step, and the anchor exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from sfl_flower.errors import WireError
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.mirror import Mirror
from sfl_flower.server.recall import Recall
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.sequential import learn_in_turn
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.server.trainer import Gradients
from sfl_flower.server.turns import later_passes
from sfl_flower.split import moving_statistics
from sfl_flower.training.modes import buffers_put_back
from sfl_flower.wire import Reader, Reply, Request, StaleReply, is_stale, pack_state
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest
from sfl_flower.zo import Journal

__all__ = ["JournalledStrategy"]

R = TypeVar("R", bound=Reply)


class JournalledStrategy(SplitStrategy):
    """Base of methods whose clients follow a journal; most send the anchor's smashed data."""

    mirror: Mirror
    _recall: Recall | None = None

    def prepare(self) -> None:
        """Remember nothing of what clients sent; a method's own comes after."""
        share = float(vars(self.settings).get("temporal", 0.0))
        self._recall = Recall(self.task, self.config, share) if share else None

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
        found = self.ask_in_step(
            cohort,
            exchange,
            lambda member: self.anchor_request(member, round, minibatches),
            ForwardReply.from_reader,
            self.check_anchor,
        )
        return self.kept_anchors(found, exchange)

    def anchor_request(self, member: Member, round: int, minibatches: int) -> ForwardRequest:
        """Return what asks a client for the anchor forward of a round."""
        return ForwardRequest(
            round=round,
            batch_size=self.config.batch_size,
            minibatches=minibatches,
            setup=self.setup,
            sync=self.mirror.sync(member),
            meter=self.metering(round),
            statistics=pack_state(self._moving()),
            **self._temporal(member, round, minibatches),
        )

    def _temporal(self, member: Member, round: int, minibatches: int) -> dict[str, Any]:
        """Return what a request says of what is remembered, nothing where nothing is."""
        if self._recall is None:
            return {}
        known = self._recall.known(member, round, minibatches)
        return {"known": known, "temporal": self._recall.share}

    def check_anchor(self, reply: ForwardReply) -> None:
        """Refuse smashed data or running statistics that are not those of the client half.

        Raises
        ------
        WireError
            If a shape differs, or a value is not finite.
        """
        self.expect_z(reply.z)
        received_state(reply.statistics, self._moving())

    def kept_anchors(
        self, found: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> dict[Member, ForwardReply]:
        """Book what anchors cost, and return those that are not out of all bounds, whole."""
        self.book_usage(reply.usage for reply in found.values())
        found = self._whole(found, exchange)
        brought = {member: reply.z for member, reply in found.items()}
        return {m: found[m] for m in self.screening.keep(SMASHED, brought, exchange.tally)}

    def _whole(
        self, found: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> dict[Member, ForwardReply]:
        """Return replies with what they left out, which is remembered."""
        whole: dict[Member, ForwardReply] = {}
        for member, reply in found.items():
            try:
                if self._recall is not None:
                    reply = self._recall.whole(member, reply)
                elif reply.changed is not None:
                    raise WireError("it leaves out samples, which nobody asked for.")
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            whole[member] = reply
        return whole

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
