"""FedAvg (McMahan et al., 2017): clients train the whole model, the server takes the mean.

The baseline without a cut: no smashed data, no labels, nothing for the server to train.  Every
client trains a copy of its own, both halves of it, and all of it is averaged, parameters and
buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sfl_flower.config import Settings
from sfl_flower.options import Momentum, Steps
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.settings import LocalStepsSettings
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.server.tally import Tally
from sfl_flower.server.verdict import tell
from sfl_flower.split import Whole, load_travelling, travelling_state
from sfl_flower.wire import pack_state
from sfl_flower.wire.fedavg import FullReply, FullRequest

__all__ = ["FedAvg", "FedAvgSettings"]


@dataclass(frozen=True)
class FedAvgSettings(LocalStepsSettings):
    """Settings of FedAvg: those of a first-order client, with one local epoch and momentum."""

    local_steps: Steps = 0
    client_momentum: Momentum = 0.9

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample."""
        return 1, 1


class FedAvg(SplitStrategy):
    """Server side of FedAvg; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "fedavg"
    settings_type: ClassVar[type[Settings]] = FedAvgSettings
    facts: ClassVar[Facts] = Facts(
        "backprop of the whole model",
        client="first order",
        server="averages",
        labels=False,
        whole=True,
        server_lr=False,
    )
    settings: FedAvgSettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client."""
        return ClientCost(parts.weights, parts.weights, parts.backprop, parts.backprop_seconds)

    def prepare(self) -> None:
        """Join the halves; the cut sees to it that something is trainable."""
        self.whole = Whole(self.client_half, self.server.module)

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of FedAvg: the model to every client, local steps, the mean."""
        packed = pack_state(travelling_state(self.whole))
        requests = {member: self._request(round, member, packed) for member in cohort}
        used = exchange.send(requests, FullReply.from_reader, self._check_weights)
        self.book_usage(reply.usage for reply in used.values())
        with self.averaging(exchange):
            self._average(used, exchange.tally)
        exchange.tally.replies = len(used)
        samples = sum(reply.samples for reply in used.values())
        return Outcome([reply.loss for reply in used.values()], samples, {})

    def _average(self, used: Mapping[Member, FullReply], tally: Tally) -> None:
        if not used:
            return
        own = travelling_state(self.whole)
        weights = [client_weight(self.config.mean, reply.samples) for reply in used.values()]
        states = (received_state(reply.weights, own) for reply in used.values())
        load_travelling(self.whole, self.aggregator.states(states, weights))
        tell(tally, self.aggregator, [member.partition for member in used])

    def _request(self, round: int, member: Member, packed: Mapping[str, np.ndarray]) -> FullRequest:
        return FullRequest(
            round=round,
            steps=self.settings.batches(member.samples, self.config.batch_size),
            batch_size=self.config.batch_size,
            setup=self.setup,
            optimizer=self.settings.optimizer_text(round, self.config.rounds),
            keep_state=self.settings.client_state == "kept",
            weights=packed,
            meter=self.metering(round),
        )

    def _check_weights(self, reply: FullReply) -> None:
        received_state(reply.weights, travelling_state(self.whole))
