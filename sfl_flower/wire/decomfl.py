"""The messages of DeComFL: what a client missed down, scalars of its local walk back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sfl_flower.wire.common import Setup, Sync
from sfl_flower.wire.fields import (
    BatchSize,
    Loss,
    Rate,
    Scalars,
    Steps,
    Trained,
    Version,
)
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.probing import BoundedProbes
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = ["WalkReply", "WalkRequest"]


@dataclass(frozen=True)
class WalkRequest(Request):
    """Ask a client to catch up and to walk some zeroth-order steps along the round's directions.

    Attributes
    ----------
    steps : int
        H local steps, a mini-batch each.
    sync : Sync
        How to come to the current version first.
    lr : float
        Learning rate of the local steps.
    """

    ACTION: ClassVar[str] = "walk"

    round: int
    steps: Steps
    probing: BoundedProbes
    batch_size: BatchSize
    setup: Setup
    sync: Sync
    lr: Rate
    meter: Meter = "none"

    def asks(self) -> Asked:
        """Ask for a row of scalars for each step."""
        return Asked(scalars=(self.steps, self.probing.probes), steps=self.steps)


@dataclass(frozen=True)
class WalkReply(Reply):
    """The scalars v of a client's local walk, and the mean of the losses along it.

    Of samples that are told apart (`Probing.clip`) there is no loss, which is then 0.
    """

    WHAT: ClassVar[str] = "walk reply"

    round: int
    version: Version
    scalars: Scalars
    samples: Trained
    loss: Loss
    usage: Usage = NO_USAGE
