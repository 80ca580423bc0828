"""What methods share whose clients send the anchor's smashed data, a round at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.batched import check_together, groups, run_together
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.journalled import JournalledStrategy
from sfl_flower.server.recall import Recall
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.sequential import learn_in_turn
from sfl_flower.server.trainer import Gradients
from sfl_flower.server.turns import later_passes, turns
from sfl_flower.server.verdict import tell
from sfl_flower.split import moving_statistics
from sfl_flower.training.modes import buffers_put_back, eval_mode
from sfl_flower.wire import Reader, pack_state
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest

__all__ = ["AnchoredStrategy"]


class AnchoredStrategy(JournalledStrategy):
    """Base of methods whose clients send smashed data from which the server half learns."""

    _recall: Recall | None = None

    def prepare(self) -> None:
        """Check the pace of the server half, and remember nothing of what clients sent."""
        self._check_pace()
        share = float(vars(self.settings).get("temporal", 0.0))
        self._recall = Recall(self.task, self.config, share) if share else None

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
        statistics = self.packed_statistics()
        found = self.ask_in_step(
            cohort,
            exchange,
            lambda member: self.anchor_request(member, round, minibatches, statistics),
            self.read_anchor,
            self.check_anchor,
        )
        return self.kept_anchors(found, exchange)

    def packed_statistics(self) -> dict[str, np.ndarray]:
        """Return the running statistics from which the anchors of a round move them."""
        return pack_state(self._moving())

    def anchor_request(
        self, member: Member, round: int, minibatches: int, statistics: Mapping[str, np.ndarray]
    ) -> ForwardRequest:
        """Return what asks a client for the anchor forward of a round."""
        return ForwardRequest(
            round=round,
            batch_size=self.config.batch_size,
            minibatches=minibatches,
            setup=self.setup,
            sync=self.mirror.sync(member),
            meter=self.metering(round),
            statistics=statistics,
            **self._temporal(member, round, minibatches),
        )

    def _temporal(self, member: Member, round: int, minibatches: int) -> dict[str, Any]:
        """Return what a request says of what is remembered, nothing where nothing is."""
        if self._recall is None:
            return {}
        known = self._recall.known(member, round, minibatches)
        return {} if known is None else {"known": known, "temporal": self._recall.share}

    def read_anchor(self, reader: Reader) -> ForwardReply:
        """Read what a client answers to `anchor_request`."""
        return ForwardReply.from_reader(reader)

    def check_anchor(self, reply: ForwardReply) -> None:
        """Refuse smashed data or running statistics that are not those of the client half.

        Raises
        ------
        WireError
            If a shape differs, or a value is not finite.
        """
        self.check_sent(reply.z, reply.statistics)

    def check_sent(self, z: np.ndarray, statistics: Mapping[str, np.ndarray]) -> None:
        """Refuse smashed data and running statistics as `check_anchor` does."""
        self.expect_z(z)
        received_state(statistics, self._moving())

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
        if self._recall is not None:
            self._recall.forget_others(self._roster.here)
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
            tell(exchange.tally, self.aggregator, [member.partition for member in used])

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

    def _check_pace(self) -> None:
        """Refuse a `server_batch` that would not give what one mini-batch after another does.

        Raises
        ------
        ConfigError
            If samples of the server half bear on one another's outputs, or the aggregator compares
            the clients' gradients.
        """

        def z(count: int) -> Tensor:
            with torch.no_grad(), eval_mode(self.client_half):
                smashed: Tensor = self.client_half(self.examples(count)[0])
            return smashed

        if self._at_once and not self.aggregator.linear:
            raise ConfigError(
                f"server_batch is {self._at_once} with aggregator={self.config.aggregator}, which "
                "compares the gradients of the server half of each client; leave server_batch 0, "
                "or set aggregator=mean."
            )
        if self._at_once:
            check_together(self.server, z, self.config.seed, self._at_once, self.task.name)

    @property
    def _at_once(self) -> int:
        """Most samples that the server half runs at one time; 0 for one mini-batch."""
        return int(getattr(self.settings, "server_batch", 0))

    def backwards(
        self, round: int, anchors: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> Iterator[tuple[Member, list[Gradients]]]:
        """Run the mini-batches of a round through the server half, client after client.

        Where the server half steps after every mini-batch, clients come in an order drawn anew,
        else their gradients are brought together by the run's aggregator, and added; the step is
        the caller's.

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
        if not self.aggregator.linear:
            yield from self._compared(anchors, exchange)
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

    def _compared(
        self, replies: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> Iterator[tuple[Member, list[Gradients]]]:
        """Add what the aggregator makes of the clients' gradients, all of which are held for it."""
        held: dict[Member, dict[str, Tensor]] = {}
        for member, reply in replies.items():
            try:
                found = self.backward(member, reply, step=False)
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            yield member, found
            parts = zip(*(part.weights for part in found), strict=True)
            held[member] = {str(at): torch.stack(each).sum(dim=0) for at, each in enumerate(parts)}
        if held:
            together = self.aggregator.states(held.values(), [1.0] * len(held))
            tell(exchange.tally, self.aggregator, [member.partition for member in held])
            self.server.add_sum([value * len(held) for value in together.values()])

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
