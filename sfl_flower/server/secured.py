"""Secure sums: the server learns the sum of a round's scalars and no client's own.

Beside the two exchanges of a round, which bring keys and shares along, a third one opens the sum
(`sfl_flower.privacy.secure_client`).  Whoever drops out in between is left out of it; where too
many do, the round goes without an update of the client half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sfl_flower.data import generator, server_seed
from sfl_flower.errors import JournalError, WireError
from sfl_flower.privacy.secure_circle import FEWEST, KEY_BYTES, TAG_BYTES, Circle
from sfl_flower.privacy.secure_numbers import from_fixed
from sfl_flower.privacy.shares import SHARE_BYTES
from sfl_flower.server import channels
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.pipelined import PipelinedStrategy, Probed
from sfl_flower.server.probing import note_zeros
from sfl_flower.server.roster import Member
from sfl_flower.server.secure_settings import sum_bits
from sfl_flower.server.tally import Tally
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest, ProbeRequest
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.secure import (
    SecureForwardReply,
    SecureForwardRequest,
    SecureProbeReply,
    SecureProbeRequest,
    UnmaskReply,
    UnmaskRequest,
    bits_of,
)
from sfl_flower.zo import SHARED_STREAM, Entry

if TYPE_CHECKING:
    from sfl_flower.privacy.secure_server import SecureRound

__all__ = ["SecuredStrategy"]


@dataclass
class _Sum:
    """The sum of a round, and who stands where in its circle."""

    secure: SecureRound
    position: dict[int, int]
    bits: int


class SecuredStrategy(PipelinedStrategy):
    """Base of methods whose clients' scalars may be known by their sum alone."""

    _sum: _Sum | None = None

    def prepare(self) -> None:
        """Have nodes asked for their keys at the join, where sums are to be secure."""
        super().prepare()
        self._joining.secure = bool(vars(self.settings).get("secure_sums"))

    def secured_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round in three exchanges: smashed data and shares, scalars, the opening."""
        keyed = self._keyed(cohort, exchange.tally)
        self._sum = self._begin_sum(round, keyed, exchange.tally)
        anchors = self.anchors(round, keyed, exchange, self.minibatches)
        for member, reply in anchors.items():
            self._dealt(member, reply, exchange.tally)
        learned = self.learn(round, anchors, exchange)
        answers = exchange.collect(SecureProbeReply.from_reader, self._check_numbers)
        counted = {
            member: reply
            for member, reply in answers.items()
            if self._counts(member, reply, learned.probed, exchange.tally)
        }
        self.book_usage(reply.usage for reply in counted.values())
        total = self._opened(counted, exchange)
        exchange.tally.replies = 0 if total is None else len(counted)
        samples = [reply.samples for reply in counted.values()]
        extra = {} if total is None else self._journal_sum(round, total, samples, exchange.tally)
        self._sum = None
        return learned.outcome(extra)

    def anchor_request(
        self, member: Member, round: int, minibatches: int, statistics: Mapping[str, np.ndarray]
    ) -> ForwardRequest:
        """Return what asks a client for the anchor forward of a round, and for shares."""
        request = super().anchor_request(member, round, minibatches, statistics)
        at = self._position(member.partition)
        if self._sum is None or at is None:
            return request
        from sfl_flower.privacy.secure_keys import mark

        secure = self._sum.secure
        keys = np.frombuffer(b"".join(secure.neighbours(at)), np.uint8).reshape(-1, KEY_BYTES)
        return SecureForwardRequest(
            **vars(request),
            holds=mark(secure.keys[at]),
            neighbours=keys,
            opens=secure.circle.opens,
        )

    def read_anchor(self, reader: Reader) -> ForwardReply:
        """Read smashed data, with shares or a new key or without."""
        shares = reader.has("sent") or reader.has("key")
        return (SecureForwardReply if shares else ForwardReply).from_reader(reader)

    def check_anchor(self, reply: ForwardReply) -> None:
        """Refuse also shares that are not as many as were asked for."""
        super().check_anchor(reply)
        if isinstance(reply, SecureForwardReply) and reply.sent is not None and self._sum:
            circle = self._sum.secure.circle
            wanted = (circle.sent, SHARE_BYTES * circle.neighbours + TAG_BYTES)
            if (len(reply.sent), len(reply.pairs or b"")) != wanted:
                raise WireError(
                    f"it has {len(reply.sent)} shares and {len(reply.pairs or b'')} bytes of "
                    f"seeds, asked were {wanted[0]} and {wanted[1]}."
                )

    def tells(self, partition: int) -> bool:
        """Tell whether a client is asked for scalars: where sums are secure, one that dealt."""
        if not vars(self.settings).get("secure_sums"):
            return True
        return self._sum is not None and self._position(partition) in self._sum.secure.left

    def secured(self, request: ProbeRequest, partition: int) -> ProbeRequest:
        """Return a request for scalars as one for masked ones, where sums are secure."""
        at = self._position(partition)
        if self._sum is None or at is None:
            return request
        told: Any = self.settings
        return SecureProbeRequest(
            **vars(request),
            dealt=bits_of(self._sum.secure.dealt(at)),
            incoming=self._sum.secure.incoming(at),
            bits=self._sum.bits,
            limit=told.scalar_limit,
            clip_norm=told.clip_norm,
            scale=told.scale,
            weighed=self.config.mean == "samples",
        )

    def _position(self, partition: int) -> int | None:
        return None if self._sum is None else self._sum.position.get(partition)

    def _keyed(self, cohort: Iterable[Member], tally: Tally) -> list[Member]:
        """Return the clients of a cohort that gave a key of their own."""
        from sfl_flower.privacy.secure_keys import agreed, new_key

        trial, owners, found = new_key(), dict[bytes, int](), list[Member]()
        for node, key in self._joining.keys.items():  # whoever gave a key first has it
            owners.setdefault(key, node)
        for member in cohort:
            key = self._joining.keys.get(member.node_id, b"")
            try:
                agreed(trial, key)
            except WireError:
                tally.reject(member, "it gave no public key that can be used.")
                continue
            if owners[key] != member.node_id:
                tally.reject(member, f"it gave the public key of node {owners[key]}.")
                continue
            found.append(member)
        return found

    def _begin_sum(self, round: int, members: list[Member], tally: Tally) -> _Sum | None:
        """Return the sum of a round among these clients, in a circle drawn anew; None for few."""
        from sfl_flower.privacy.secure_server import SecureRound

        told: Any = self.settings
        circle = Circle(len(members), told.secure_neighbours, told.secure_threshold)
        if len(members) < max(FEWEST, told.secure_threshold):
            tally.note(
                f"No scalars are asked for in round {round}: {len(members)} clients are too few "
                "for a secure sum."
            )
            return None
        order = generator("secure circle", server_seed(self.config.seed), round)
        stands = [members[i] for i in order.permutation(len(members))]
        keys = [self._joining.keys[member.node_id] for member in stands]
        position = {member.partition: at for at, member in enumerate(stands)}
        bits = sum_bits(self.config, told, self.config.cohort)
        return _Sum(SecureRound(circle, keys, round), position, bits)

    def _dealt(self, member: Member, reply: ForwardReply, tally: Tally) -> None:
        """Keep what a client left for its neighbours, or its new key for later rounds."""
        at = self._position(member.partition)
        if self._sum is None or at is None or not isinstance(reply, SecureForwardReply):
            return
        if reply.key is not None:
            self._joining.keys.pop(member.node_id, None)  # it is then the last to have a key
            self._joining.keys[member.node_id] = reply.key
            tally.note(
                f"Client {member.partition} has a new key, for it lost its state; its scalars are "
                "left out of this round."
            )
            return
        from sfl_flower.privacy.secure_server import Left

        assert reply.mark is not None and reply.pairs is not None and reply.sent is not None
        self._sum.secure.left[at] = Left(reply.mark, reply.pairs, reply.sent)

    def _check_numbers(self, reply: SecureProbeReply) -> None:
        wanted = (self.minibatches, vars(self.settings)["probes"])
        if reply.numbers.shape != wanted:
            raise WireError(f"it has numbers of shape {reply.numbers.shape}, asked was {wanted}.")

    def _counts(
        self, member: Member, reply: SecureProbeReply, probed: Probed, tally: Tally
    ) -> bool:
        """Tell whether a client counted its scalars as the server will."""
        wanted = probed.used[member.partition]
        if reply.samples != wanted:
            tally.reject(member, f"it says {reply.samples} samples, it sent {wanted}.")
        return reply.samples == wanted

    def _opened(
        self, answers: Mapping[Member, SecureProbeReply], exchange: Exchange
    ) -> np.ndarray | None:
        """Return the sum of scalars, int64 [minibatches, probes]; None where it stays closed."""
        from sfl_flower.privacy.secure_server import NotOpenedError

        tally = exchange.tally
        if self._sum is None:
            return None
        secure, position = self._sum.secure, self._sum.position
        of = {position[member.partition]: member for member in answers}
        secure.numbers = {at: answers[member].numbers for at, member in of.items()}
        try:
            secure.check()
            replies = exchange.send(
                {
                    member: UnmaskRequest(secure.round, self.setup, bits_of(secure.arrived(at)))
                    for at, member in of.items()
                },
                UnmaskReply.from_reader,
            )
            shares = {}
            for member, reply in replies.items():
                at = position[member.partition]
                if len(reply.shares) == 1 + sum(secure.dealt(at)):
                    shares[at] = reply.shares
                else:
                    tally.reject(member, f"it has {len(reply.shares)} shares, asked were others.")
            total = secure.total(shares)
        except NotOpenedError as error:
            tally.note(f"Nothing is learned of the scalars of round {secure.round}: {error}")
            return None
        for at in sorted(secure.liars):
            tally.note(
                f"A share that client {of[at].partition} revealed does not fit: it is false, or "
                "was dealt false. Those of others opened the sum."
            )
        return total

    def _journal_sum(
        self, round: int, total: np.ndarray, samples: list[int], tally: Tally
    ) -> dict[str, float]:
        """Journal the mean of scalars that a sum gives; return the method's numbers."""
        assert self._sum is not None
        told: Any = self.settings
        count = sum(client_weight(self.config.mean, own) for own in samples)
        note_zeros(tally, [total], told.probing())
        coefficients = from_fixed(total, self._sum.bits) / (count * told.probes * self.minibatches)
        if told.walk:
            shape = (1, *coefficients.shape)
            coefficients *= channels.walk_signs(self.config.seed, round, shape, True)
        lr = told.client_rate(round, self.config.rounds)
        try:
            self.mirror.update(
                Entry(
                    round=round,
                    lr=lr,
                    streams=(SHARED_STREAM,),
                    steps=self.minibatches,
                    probes=told.probes,
                    coefficients=coefficients[None].astype(np.float32),
                    seal=told.seal(self.config.seed, round),
                )
            )
        except JournalError as error:
            tally.note(str(error))
        return {"client_lr": lr}
