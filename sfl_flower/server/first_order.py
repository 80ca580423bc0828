"""The settings of a client that is trained by backprop, the same for every method with one."""

from __future__ import annotations

from dataclasses import dataclass

from sfl_flower.config import check_choice, check_range
from sfl_flower.data import steps_per_epoch
from sfl_flower.server.client_rate import ClientRateSettings
from sfl_flower.training.optim import FIRST_ORDER, optimizer_text

__all__ = ["FirstOrderSettings"]


@dataclass(frozen=True)
class FirstOrderSettings(ClientRateSettings):
    """Settings of a first-order client, beside those of its rate.

    Attributes
    ----------
    local_steps : int
        Mini-batches per client and round; 0 is one epoch of the client's own samples, whose last
        mini-batch may be short.
    client_optimizer : {"sgd", "adam", "adamw"}
        Optimiser on the client.
    client_momentum, client_weight_decay : float
        Its settings; momentum is for SGD.
    client_state : {"fresh", "kept"}
        Whether the client optimiser's state starts anew each round or stays on each client.
    """

    local_steps: int = 1
    client_optimizer: str = "sgd"
    client_momentum: float = 0.9
    client_weight_decay: float = 0.0
    client_state: str = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("local_steps", self.local_steps, 0, 10**6)
        check_range("client_momentum", self.client_momentum, 0, 0.9999)
        check_range("client_weight_decay", self.client_weight_decay, 0)
        check_choice("client_optimizer", self.client_optimizer, FIRST_ORDER)
        check_choice("client_state", self.client_state, ("fresh", "kept"))

    @property
    def keeps_client_state(self) -> bool:
        """Whether clients keep their optimiser's state."""
        return self.client_state == "kept"

    def batches(self, samples: int, batch_size: int) -> int:
        """Return the mini-batches that a client with so many samples runs in a round."""
        return self.local_steps or steps_per_epoch(samples, batch_size)

    def optimizer(self, round: int, rounds: int) -> str:
        """Return the client optimiser of a round as the text that travels."""
        lr, momentum, decay = (
            self.client_rate(round, rounds), self.client_momentum, self.client_weight_decay,
        )  # fmt: skip
        return optimizer_text(self.client_optimizer, lr, momentum, decay)
