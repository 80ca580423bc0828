"""CSE-FSL (arXiv 2302.05599): first-order local steps, smashed data of every k-th, no answer.

Client halves and auxiliary heads are averaged at the end of the round; the server half takes one
step for each uploaded batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sfl_flower.config import Settings, check_choice
from sfl_flower.errors import WireError
from sfl_flower.server.local_loss import LocalLossSettings, LocalLossStrategy
from sfl_flower.server.roster import Member
from sfl_flower.split import travelling_state
from sfl_flower.training.optim import FIRST_ORDER
from sfl_flower.wire import CSEFSLRequest, LocalReply, LocalRequest, unpack_state

__all__ = ["CSEFSL", "CSEFSLSettings"]


@dataclass(frozen=True)
class CSEFSLSettings(LocalLossSettings):
    """Settings of CSE-FSL.

    Attributes
    ----------
    client_optimizer : {"sgd", "adam", "adamw"}
        Optimiser of client half and head; client_momentum is for SGD.
    """

    client_optimizer: str = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("client_optimizer", self.client_optimizer, FIRST_ORDER)

    def optimizer_options(self) -> dict[str, Any]:
        """Return torch's optimiser and its settings, the learning rate left out."""
        return {
            "name": self.client_optimizer,
            "momentum": self.client_momentum,
            "weight_decay": self.client_weight_decay,
        }


class CSEFSL(LocalLossStrategy):
    """Server side of CSE-FSL; see the module and `LocalLossStrategy`."""

    name: ClassVar[str] = "cse_fsl"
    settings_type: ClassVar[type[Settings]] = CSEFSLSettings
    request_type: ClassVar[type[LocalRequest]] = CSEFSLRequest
    settings: CSEFSLSettings

    def check_reply(self, reply: LocalReply) -> None:
        """Refuse a reply whose weights do not fit client half and head."""
        if reply.scalars is not None:
            raise WireError("it brings scalars, asked were weights.")
        unpack_state(reply.weights, travelling_state(self.client_half))
        unpack_state(reply.head_weights, travelling_state(self.head))

    def average(
        self, round: int, replies: Mapping[Member, LocalReply], weights: list[float]
    ) -> None:
        """Average client halves and heads, parameters and buffers."""
        client, head = travelling_state(self.client_half), travelling_state(self.head)
        states = [
            {f"client.{k}": v for k, v in unpack_state(reply.weights, client).items()}
            | {f"head.{k}": v for k, v in unpack_state(reply.head_weights, head).items()}
            for reply in replies.values()
        ]
        self.average_both(states, weights)
