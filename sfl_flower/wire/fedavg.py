"""The messages of FedAvg: the whole model down, the whole model back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sfl_flower.wire.common import Setup
from sfl_flower.wire.fields import BatchSize, Loss, Steps, Trained, Weights
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = ["FullReply", "FullRequest"]


@dataclass(frozen=True)
class FullRequest(Request):
    """Ask a client to train the whole model on its own data.

    Attributes
    ----------
    steps : int
        Mini-batches to train on, one optimiser step each.
    """

    ACTION: ClassVar[str] = "train"

    round: int
    steps: Steps
    batch_size: BatchSize
    setup: Setup
    optimizer: str
    keep_state: bool
    weights: Weights
    meter: Meter = "none"

    def asks(self) -> Asked:
        """Ask for the weights after so many steps."""
        return Asked(steps=self.steps)


@dataclass(frozen=True)
class FullReply(Reply):
    """The whole model after a client's local steps.

    Attributes
    ----------
    loss : float
        Mean of the losses of its mini-batches, each before its step.
    """

    WHAT: ClassVar[str] = "full reply"

    round: int
    samples: Trained
    loss: Loss
    weights: Weights
    usage: Usage = NO_USAGE
