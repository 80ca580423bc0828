"""The client's learning rate over the rounds, the same settings for every method that has them."""

from __future__ import annotations

from dataclasses import dataclass

from sfl_flower.config import Settings, check_choice, check_range
from sfl_flower.training.schedules import SCHEDULES, scheduled

__all__ = ["ClientRateSettings"]


@dataclass(frozen=True)
class ClientRateSettings(Settings):
    """How the client's learning rate goes over the rounds of a run.

    Attributes
    ----------
    client_lr : float
        Learning rate of what clients train.
    client_lr_schedule : {"constant", "linear", "cosine"}
        How client_lr goes over the rounds; the last two end at 0.
    client_lr_warmup : float
        First rounds over which client_lr rises linearly; below 1 it is a share of all rounds.
    """

    client_lr: float = 0.05
    client_lr_schedule: str = "constant"
    client_lr_warmup: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("client_lr", self.client_lr, 0, 1e6)
        check_choice("client_lr_schedule", self.client_lr_schedule, SCHEDULES)
        check_range("client_lr_warmup", self.client_lr_warmup, 0)

    def client_rate(self, round: int, rounds: int) -> float:
        """Return the client's learning rate in a round of a run of so many rounds."""
        schedule, warmup = self.client_lr_schedule, self.client_lr_warmup
        return scheduled(schedule, self.client_lr, round, rounds, warmup)
