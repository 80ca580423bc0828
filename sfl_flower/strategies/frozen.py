"""The frozen client: the control that shows what training the client half adds.

Same data order, cut, server optimiser and number of server steps as the method it stands beside;
the client half keeps its initial weights to the bit.  BatchNorm in train mode moves its running
statistics as in HO-SFL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sfl_flower.config import Settings
from sfl_flower.options import ClientMode, Minibatches
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.anchored import AnchoredStrategy
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.mirror import Mirror
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.recall import TemporalSettings
from sfl_flower.server.roster import Member
from sfl_flower.server.turns import ServerPaceSettings
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.zo import OptimizerSpec, run_key

__all__ = ["Frozen", "FrozenSettings"]


@dataclass(frozen=True)
class FrozenSettings(TemporalSettings, ServerPaceSettings):
    """Settings of the frozen client, beside the pace of the server half.

    Attributes
    ----------
    minibatches : int
        Mini-batches per exchange.
    client_mode : {"as_built", "eval"}
        Mode of the client half's modules.
    """

    minibatches: Minibatches = 1
    client_mode: ClientMode = "as_built"

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample."""
        return 1, 0

    def batches(self, samples: int, batch_size: int) -> int:
        """Return the mini-batches of a client in a round."""
        return self.minibatches


class Frozen(AnchoredStrategy):
    """Server side of the frozen client; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "frozen"
    settings_type: ClassVar[type[Settings]] = FrozenSettings
    facts: ClassVar[Facts] = Facts(
        "nothing on the client, backprop on the server",
        client="nothing",
        server="first order",
        journal=True,
    )
    settings: FrozenSettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client."""
        up = parts.smashed + parts.labels
        return ClientCost(up, 0, parts.inference, parts.forward_seconds)

    def prepare(self) -> None:
        """Keep the client half as it is; its journal stays empty."""
        super().prepare()
        self.mirror = Mirror(
            self.client_half,
            run_key("frozen", self.config.seed),
            "rademacher",
            OptimizerSpec("sgd"),
            "auto",
        )

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Train the server half on the smashed data of one round."""
        settings = self.settings
        anchors = self.anchors(round, cohort, exchange, settings.minibatches)
        losses: list[float] = []
        used: dict[Member, ForwardReply] = {}
        total = 0.0
        for member, found in self.backwards(round, anchors, exchange):
            losses += [part.loss for part in found]
            used[member] = anchors[member]
            exchange.tally.replies += 1
            total += client_weight(self.config.mean, len(anchors[member].y))
        if settings.server_steps == "round":
            self.server.step(total * settings.minibatches)
        self.move_statistics(used, exchange)
        steps = self.pass_again(round, used, exchange)
        samples = sum(len(reply.y) for reply in used.values())
        return Outcome(losses, samples, {}, steps_again=steps)
