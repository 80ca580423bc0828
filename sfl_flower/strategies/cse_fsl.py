"""CSE-FSL (arXiv 2302.05599): first-order local steps, smashed data of every k-th, no answer.

Client halves and auxiliary heads are averaged at the end of the round; the server half takes one
step for each uploaded batch.
"""

from __future__ import annotations

from typing import ClassVar

from sfl_flower.config import Settings
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.following import FollowingSettings, FollowingStrategy
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.roster import Member
from sfl_flower.wire.local import LocalRequest

__all__ = ["CSEFSL"]


class CSEFSL(FollowingStrategy):
    """Server side of CSE-FSL; see the module and `FollowingStrategy`."""

    name: ClassVar[str] = "cse_fsl"
    settings_type: ClassVar[type[Settings]] = FollowingSettings
    facts: ClassVar[Facts] = Facts(
        "backprop on the loss of an auxiliary head",
        client="first order",
        server="first order",
        head=True,
    )
    settings: FollowingSettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client."""
        sent = parts.weights + parts.head
        return ClientCost(
            up=parts.smashed + parts.labels + sent,
            down=sent,
            memory=parts.backprop + 2 * parts.head,  # the head and its gradient
            seconds=parts.backprop_seconds,
        )

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of CSE-FSL: local steps everywhere, the server's pass, the means."""
        replies = self.ask_in_step(LocalRequest, round, cohort, exchange, self.check_both)
        used, losses = self.serve(replies, exchange, [self.server])
        with self.averaging(exchange):
            self.average_both(used, exchange.tally)
        if used:
            self.downlink.advance(exchange.tally)
        return self.outcome(round, used.values(), losses, exchange)
