"""SplitFed V1 and V2 (arXiv 2004.12088): first order on both sides of the cut.

Per local step a client sends smashed data and receives λ, backpropagates it and steps.  V1 keeps a
copy of the server half per client and averages the copies at the end of the round; V2 has one
server half, stepped after every batch, clients in an order drawn anew each round.  λ is taken
before that step.  Client halves are averaged at the end of the round in both.

Clients run step by step together: the server sees step 0 of every client, then step 1.  λ of a
step rides on the request for the next, so a round of h local steps is h + 1 exchanges.  A client
gets λ as soon as the server has used its batch, so it works while the server does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError, CutError, WireError
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.settings import LocalStepsSettings
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.server.tally import Tally
from sfl_flower.server.trainer import Trainer
from sfl_flower.server.turns import turns
from sfl_flower.server.verdict import tell
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.wire import pack_state
from sfl_flower.wire.splitfed import StepReply, StepRequest

__all__ = ["SplitFedSettings", "SplitFedV1", "SplitFedV2"]


@dataclass(frozen=True)
class SplitFedSettings(LocalStepsSettings):
    """Settings of SplitFed: those of a first-order client."""

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample."""
        return 2, 1  # the forward whose z is sent keeps no graph


class _SplitFed(SplitStrategy):
    settings_type: ClassVar[type[Settings]] = SplitFedSettings
    facts: ClassVar[Facts] = Facts(
        "backprop with the server half's gradient",
        client="first order",
        server="first order",
        gradients=True,
    )
    settings: SplitFedSettings

    def prepare(self) -> None:
        """Refuse a client half that has nothing to send.

        Raises
        ------
        CutError
            If it trains no parameter.
        """
        if not any(parameter.requires_grad for parameter in self.client_half.parameters()):
            raise CutError(
                f"The client half up to '{self.task.cut}' has no trainable parameter, so SplitFed "
                "has nothing to train there; cut at a later layer, or use method 'frozen'."
            )

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of SplitFed: h steps on every client, then the means."""
        self._steps = {m: self.settings.batches(m.samples, self.config.batch_size) for m in cohort}
        samples = dict.fromkeys(cohort, 0)
        losses: list[float] = []
        done: dict[Member, StepReply] = {}
        self.begin_round()
        order = self.order(round, sorted(cohort))
        packed = pack_state(travelling_state(self.client_half))
        exchange.push({m: self._request(round, 0, m, weights=packed) for m in cohort})
        active = cohort
        for step in range(max(self._steps.values(), default=0) + 1):
            turns, active = self._turns(step, order, active), []
            for member, reply in exchange.in_turn(turns, StepReply.from_reader, self._check_step):
                self.book_usage([reply.usage])
                if reply.z is None or reply.y is None:
                    done[member] = reply
                    continue
                loss = self._use(round, step, member, reply.z, reply.y, exchange)
                if loss is not None:
                    active.append(member)
                    samples[member] += len(reply.y)
                    losses.append(loss)
        with self.averaging(exchange):
            ordered = {member: done[member] for member in sorted(done)}
            self._average(ordered, samples, exchange.tally)
        exchange.tally.replies = len(done)
        return Outcome(losses, sum(samples.values()), {})

    def _turns(self, step: int, order: list[Member], active: list[Member]) -> list[Member]:
        """Return whose reply is taken when: batches in the round's order, then weights."""
        going = [member for member in order if member in active and step < self._steps[member]]
        return [*going, *(member for member in active if step == self._steps[member])]

    def _use(
        self,
        round: int,
        step: int,
        member: Member,
        z: np.ndarray,
        y: np.ndarray,
        exchange: Exchange,
    ) -> float | None:
        """Send a client its λ and train the server half; the loss, None if it cannot be used."""
        half = self.half_of(member)
        try:
            self.screening.check(SMASHED, member, z)
            found = half.gradients(z, y, (round, member.partition, step))
        except WireError as error:
            exchange.tally.reject(member, error)
            return None
        exchange.push({member: self._request(round, step + 1, member, lam=found.lam)})
        half.add([found], 1.0)
        half.step()
        return found.loss

    def begin_round(self) -> None:
        """Set up the server halves of a round."""

    def half_of(self, member: Member) -> Trainer:
        """Return the server half that a client's batches train."""
        return self.server

    def order(self, round: int, members: list[Member]) -> list[Member]:
        """Return the order in which the server takes the clients' batches in a round."""
        return members

    def end_round(self, members: list[Member], weights: list[float]) -> None:
        """Bring the server halves of a round together."""

    def _average(
        self, done: Mapping[Member, StepReply], samples: Mapping[Member, int], tally: Tally
    ) -> None:
        own = travelling_state(self.client_half)
        if not done:
            return
        weights = [client_weight(self.config.mean, samples[member]) for member in done]
        states = (received_state(reply.weights, own) for reply in done.values())
        load_travelling(self.client_half, self.aggregator.states(states, weights))
        tell(tally, self.aggregator, [member.partition for member in done])
        self.end_round(list(done), weights)

    def _request(
        self,
        round: int,
        step: int,
        member: Member,
        weights: Mapping[str, np.ndarray] | None = None,
        lam: np.ndarray | None = None,
    ) -> StepRequest:
        return StepRequest(
            round=round,
            step=step,
            steps=self._steps[member],
            batch_size=self.config.batch_size,
            setup=self.setup,
            optimizer=self.settings.optimizer_text(round, self.config.rounds),
            keep_state=self.settings.client_state == "kept",
            weights=weights or {},
            lam=lam,
            meter=self.metering(round),
        )

    def _check_step(self, reply: StepReply) -> None:
        if reply.z is None:
            received_state(reply.weights, travelling_state(self.client_half))
        else:
            self.expect_z(reply.z)


class SplitFedV2(_SplitFed):
    """Server side of SplitFed V2: one server half; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "splitfed_v2"

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client, of V1 as of V2."""
        return ClientCost(
            up=parts.smashed + parts.labels + parts.weights,
            down=parts.gradients + parts.weights,
            memory=parts.backprop,
            # One forward gives z and keeps no graph; λ is led back through a second.
            seconds=parts.forward_seconds + parts.backprop_seconds,
        )

    def order(self, round: int, members: list[Member]) -> list[Member]:
        """Return the clients in an order drawn from the run's seed, a new one each round."""
        # One order for all steps of a round: a client's next batch is due as long after its last
        # as every other's, so the server seldom waits.
        return turns(self.config.seed, round, members)


class SplitFedV1(_SplitFed):
    """Server side of SplitFed V1: a server half per client; see the module.

    The copies' optimisers start anew each round.
    """

    name: ClassVar[str] = "splitfed_v1"

    @classmethod
    def check_options(cls, config: RunConfig, settings: Settings) -> None:
        """Refuse to compile what lives for a round."""
        super().check_options(config, settings)
        if config.server_compile:
            raise ConfigError(
                "server_compile is True with method 'splitfed_v1', whose server copies the server "
                "half for each client and round: torch would compile every copy; it must be "
                "False, or take method 'splitfed_v2'."
            )

    def begin_round(self) -> None:
        """Forget the copies of the last round."""
        self._copies: dict[Member, Trainer] = {}

    def half_of(self, member: Member) -> Trainer:
        """Return the client's own copy of the server half."""
        if member not in self._copies:
            self._copies[member] = self.new_trainer(copy.deepcopy(self.server.module))
            self._copies[member].begin(self.round)
        return self._copies[member]

    def end_round(self, members: list[Member], weights: list[float]) -> None:
        """Average the copies of the clients that finished."""
        states = (travelling_state(self._copies[member].module) for member in members)
        load_travelling(self.server.module, self.aggregator.states(states, weights))
