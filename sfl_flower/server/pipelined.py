"""Rounds of one exchange: probes of the round before and smashed data of this one, together.

A plain round takes two exchanges, for a client can only probe once it has λ.  Pipelined, λ of round
t travels with the request for the smashed data of round t + 1: the client probes where it stood,
syncs, and runs the next anchor.  Its scalars of round t therefore move nobody before round t + 2,
one step later than in a plain run.  The last round closes with an exchange of probes alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sfl_flower.server.anchored import AnchoredStrategy
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.outcome import Outcome, mean_dcor
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SCALARS
from sfl_flower.server.spending import Spending
from sfl_flower.server.tensors import named, under
from sfl_flower.wire.ho_sfl import (
    ForwardReply,
    ForwardRequest,
    PipelinedReply,
    PipelinedRequest,
    ProbeReply,
    ProbeRequest,
    read_pipelined,
)
from sfl_flower.zo import Guide

__all__ = ["Learned", "PipelinedStrategy", "Probed"]

LAM, SCALAR = "lam.", "scalars."
_AWAITED, _ARRIVED = "awaited.", "arrived."


@dataclass(frozen=True)
class Probed:
    """A round that clients probe, or have probed.

    Attributes
    ----------
    round : int
        The round.
    used : dict[int, int]
        By partition, the samples of each client whose smashed data was used.
    lam : dict[int, numpy.ndarray]
        By partition, λ, float32, shape of z; only where it has not been sent.
    guide : Guide or None
        The round's guide.
    scalars : dict[int, numpy.ndarray]
        By partition, what arrived: float32 [minibatches, ...], as in `ProbeReply`.
    dcor : float or None
        Mean over these clients of what their replies say; None where it is not measured. The
        history has it when it arrives, so no checkpoint holds it.
    """

    round: int
    used: dict[int, int]
    lam: dict[int, np.ndarray] = field(default_factory=dict)
    guide: Guide | None = None
    scalars: dict[int, np.ndarray] = field(default_factory=dict)
    dcor: float | None = None

    def seen(self, name: str = "dcor") -> dict[str, float]:
        """Return what the history says of the smashed data of the round."""
        return {} if self.dcor is None else {name: self.dcor}

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as named tensors, for a checkpoint."""
        found = {"round": torch.tensor(self.round)}
        found["used"] = torch.tensor(sorted(self.used.items()), dtype=torch.int64).reshape(-1, 2)
        found |= {f"{LAM}{at}": torch.from_numpy(lam.copy()) for at, lam in self.lam.items()}
        found |= {f"{SCALAR}{at}": torch.from_numpy(v.copy()) for at, v in self.scalars.items()}
        if self.guide is not None:
            encoded = bytearray(self.guide.encode())
            found["guide"] = torch.frombuffer(encoded, dtype=torch.uint8)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Probed | None:
        """Return what `tensors` gave, None where there is nothing."""
        if not tensors:
            return None
        guide = tensors.get("guide")
        return cls(
            int(tensors["round"]),
            {int(at): int(count) for at, count in tensors["used"].tolist()},
            _by_partition(under(LAM, tensors)),
            None if guide is None else Guide.decode(guide.numpy().tobytes()),
            _by_partition(under(SCALAR, tensors)),
        )


@dataclass(frozen=True)
class Learned:
    """What the server half made of a round's smashed data.

    Attributes
    ----------
    losses : list of float
        Mean losses of the mini-batches that were used.
    probed : Probed
        What clients are to probe.
    steps_again : int
        Steps of later passes over the same mini-batches.
    """

    losses: list[float]
    probed: Probed
    steps_again: int = 0

    def outcome(self, extra: Mapping[str, float]) -> Outcome:
        """Return what is reported of the round."""
        samples = sum(self.probed.used.values())
        return Outcome(self.losses, samples, extra, steps_again=self.steps_again)


def _by_partition(tensors: Mapping[str, Tensor]) -> dict[int, np.ndarray]:
    """Return arrays by partition, ascending: a file has its names in the order of text."""
    return {at: tensors[str(at)].numpy() for at in sorted(map(int, tensors))}


class PipelinedStrategy(AnchoredStrategy):
    """Base of methods whose clients probe along λ, and may do so pipelined."""

    minibatches: int
    """Mini-batches of a client in a round."""
    spending: Spending
    """What scalars spend of the samples' privacy."""
    _awaited: Probed | None = None
    """The round whose λ goes out with the next exchange."""
    _arrived: Probed | None = None
    """The round before it, with scalars that the next exchange tells everyone."""
    _resumed: bool = False

    def metering(self, round: int) -> str:
        """Return what clients measure; pipelined, the first probes are those of the second round.

        Memory is then measured in the first two rounds, operations in the third.
        """
        if vars(self.settings).get("pipeline"):
            round = max(round - 1, self.account.first + 1)
        return super().metering(round)

    @abstractmethod
    def learn(
        self, round: int, anchors: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> Learned:
        """Train the server half on the smashed data of a round; return λ and the rest."""

    @abstractmethod
    def probe_request(
        self, probed: Probed, partition: int, lam: np.ndarray, round: int
    ) -> ProbeRequest:
        """Return what asks a client, in some round, for its probes of this or an earlier one."""

    @abstractmethod
    def check_scalars(self, reply: ProbeReply | PipelinedReply) -> None:
        """Raise `WireError` where scalars cannot be those of an honest client."""

    @abstractmethod
    def update(self, probed: Probed, exchange: Exchange) -> dict[str, float]:
        """Move the client half by the scalars of a round; return the method's numbers."""

    def probe_requests(
        self, probed: Probed, members: Iterable[Member], round: int
    ) -> dict[Member, ProbeRequest]:
        """Return what asks clients, in some round, to probe along the λ that is held for them."""
        return {
            m: self.probe_request(probed, m.partition, probed.lam[m.partition], round)
            for m in members
        }

    def told(
        self,
        probed: Probed,
        answers: Mapping[Member, ProbeReply | PipelinedReply],
        exchange: Exchange,
    ) -> Probed:
        """Return a round with the scalars that are not out of all bounds, by partition."""
        brought = {member: answers[member].scalars for member in sorted(answers)}
        last = [row for entry in self.journal.entries[-1:] for row in entry.coefficients]
        may = self.spending.comparable
        kept = self.screening.keep(SCALARS, brought, exchange.tally, last, compared=may)
        scalars = {m.partition: brought[m] for m in kept}
        dcor = mean_dcor(answers[m].dcor for m in kept)
        return replace(probed, lam={}, scalars=scalars, dcor=dcor)

    def pipelined_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round in one exchange; see the module."""
        if self._resumed:
            self._stand_again(exchange)
        extra = {} if self._arrived is None else self.update(self._arrived, exchange)
        stood = self._awaited
        anchors, answers = self._step(round, cohort, exchange)
        arrived = None if stood is None else self.told(stood, answers, exchange)
        self._arrived = arrived
        learned = self.learn(round, anchors, exchange)
        self._awaited = learned.probed
        # Clients count with what they learn; the first round has no probes yet.
        exchange.tally.early = self._arrived is None
        counted = learned.probed.used if self._arrived is None else self._arrived.scalars
        exchange.tally.replies = len(counted)
        if self.account.over(round):
            extra = self._close(round, exchange) or extra
        seen = {} if arrived is None else arrived.seen()
        return learned.outcome({**extra, **seen})

    def pipeline_tensors(self) -> dict[str, Tensor]:
        """Return what is under way as named tensors, for a checkpoint."""
        rounds = {_AWAITED: self._awaited, _ARRIVED: self._arrived}
        return {
            name: value
            for prefix, probed in rounds.items()
            if probed is not None
            for name, value in named(prefix, probed.tensors()).items()
        }

    def load_pipeline_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `pipeline_tensors` gave; clients are then brought to where they stood."""
        self._awaited = Probed.from_tensors(under(_AWAITED, tensors))
        self._arrived = Probed.from_tensors(under(_ARRIVED, tensors))
        self._resumed = self._awaited is not None

    def _step(
        self, round: int, cohort: list[Member], exchange: Exchange
    ) -> tuple[dict[Member, ForwardReply], dict[Member, ProbeReply | PipelinedReply]]:
        """Return smashed data of the cohort, and scalars of all whose λ was held back."""
        awaited = self._awaited
        probes: dict[Member, ProbeRequest] = {}
        if awaited is not None:
            waiting, gone = self._waiting(awaited)
            for member in gone:
                exchange.tally.fail(member, "it went before it could probe.")
            probes = self.probe_requests(awaited, waiting, round)
        statistics = self.packed_statistics()
        asked: set[Member] = set()
        lost: set[Member] = set()

        def request(member: Member) -> ForwardRequest:
            anchor = self.anchor_request(member, round, self.minibatches, statistics)
            probe = probes.get(member)
            if probe is None:
                return anchor
            if member in asked:  # it is asked again
                lost.add(member)
                exchange.tally.note(
                    f"Client {member.partition} lost its state, and with it its probes of round "
                    f"{round - 1}."
                )
                return anchor
            asked.add(member)
            return PipelinedRequest.of(anchor, probe)

        def check(reply: ForwardReply | ProbeReply) -> None:
            if isinstance(reply, ForwardReply):
                self.check_anchor(reply)
            if isinstance(reply, (PipelinedReply, ProbeReply)):
                self.check_scalars(reply)

        beside = {member: probe for member, probe in probes.items() if member not in cohort}
        found = self.ask_in_step(cohort, exchange, request, read_pipelined, check, beside)
        told = {
            member: reply
            for member, reply in found.items()
            if member in probes.keys() - lost and isinstance(reply, (PipelinedReply, ProbeReply))
        }
        self.book_usage(r.usage for r in told.values() if isinstance(r, ProbeReply))
        anchors: dict[Member, ForwardReply] = {}
        for member in cohort:
            answer = found.get(member)
            if isinstance(answer, ForwardReply):
                anchors[member] = answer
            elif answer is not None:
                exchange.tally.reject(member, f"it is a {answer.WHAT}, without smashed data.")
        return self.kept_anchors(anchors, exchange), told

    def _close(self, round: int, exchange: Exchange) -> dict[str, float]:
        """Ask for the probes of the last round, and take both steps that are left."""
        assert self._awaited is not None
        waiting, _ = self._waiting(self._awaited)
        exchange.push(self.probe_requests(self._awaited, waiting, round))
        answers = exchange.collect(ProbeReply.from_reader, self.check_scalars)
        self.book_usage(reply.usage for reply in answers.values())
        last = self.told(self._awaited, answers, exchange)
        found: dict[str, float] = {}
        for probed in (self._arrived, last):
            found = found if probed is None else self.update(probed, exchange) or found
        found |= last.seen("dcor_closing")
        exchange.tally.replies, exchange.tally.early = len(last.scalars), False
        self._awaited = self._arrived = None
        return found

    def _waiting(self, awaited: Probed) -> tuple[list[Member], list[Member]]:
        """Return the clients with a λ that is held back, those that are online and the others."""
        here = {member.partition: member for member in self._roster.here}
        gone = [Member(partition, 0) for partition in awaited.lam if partition not in here]
        return [here[partition] for partition in awaited.lam if partition in here], gone

    def _stand_again(self, exchange: Exchange) -> None:
        """Bring clients to where they stood when the run was stopped: they are to probe there.

        They run the anchor of that round again, from which the server learned before.
        """
        self._resumed = False
        assert self._awaited is not None
        at, (waiting, _) = self._awaited.round, self._waiting(self._awaited)
        statistics = self.packed_statistics()

        def request(member: Member) -> ForwardRequest:
            anchor = self.anchor_request(member, at, self.minibatches, statistics)
            return replace(anchor, known=None, temporal=0.0)  # this z is not remembered

        with self.account.repeating():
            self.ask_in_step(
                waiting,
                exchange,
                request,
                ForwardReply.from_reader,
                self.check_anchor,
            )
