"""The messages of MU-SplitFed: three forwards up and one scalar down, weights around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from sfl_flower.wire.common import Setup, check_batch
from sfl_flower.wire.fields import BatchSize, Labels, Rate, Smashed, Weights, array
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.probing import PlainProbes
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = ["MUForwardReply", "MUForwardRequest", "MUStepReply", "MUStepRequest"]


@dataclass(frozen=True)
class MUForwardRequest(Request):
    """Ask for the three forwards of a round."""

    ACTION: ClassVar[str] = "forward"

    round: int
    batch_size: BatchSize
    setup: Setup
    probing: PlainProbes
    weights: Weights
    meter: Meter = "none"

    def asks(self) -> Asked:
        """Ask for one mini-batch."""
        return Asked(batches=1)


@dataclass(frozen=True)
class MUForwardReply(Reply):
    """Smashed data of one mini-batch at θ_c, θ_c + μu and θ_c - μu, and its labels."""

    WHAT: ClassVar[str] = "three-forwards reply"

    round: int
    anchor: Smashed
    plus: Smashed
    minus: Smashed
    y: Labels
    usage: Usage = NO_USAGE

    def examples(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    def check(self, reader: Reader) -> None:
        """Refuse forwards and labels that do not fit one another."""
        shapes = self.anchor.shape, self.plus.shape, self.minus.shape
        if len(set(shapes)) > 1:
            raise reader.fail(f"has smashed data of the shapes {shapes}, which must be equal")
        check_batch(reader, self.anchor, self.y)


@dataclass(frozen=True)
class MUStepRequest(Request):
    """Give a client the scalar of its round; it steps and sends its weights.

    Attributes
    ----------
    lr : float
        Learning rate of the step.
    scalar : numpy.ndarray
        Δ, the loss at θ_c + μu less the loss at θ_c - μu, float32, shape [1].
    """

    ACTION: ClassVar[str] = "step"

    round: int
    setup: Setup
    probing: PlainProbes
    lr: Rate
    scalar: Annotated[np.ndarray, array("float32", "scalars", shape=(1,))]
    meter: Meter = "none"


@dataclass(frozen=True)
class MUStepReply(Reply):
    """A client's weights after its step."""

    WHAT: ClassVar[str] = "weights reply"

    round: int
    weights: Weights
    usage: Usage = NO_USAGE

    def check(self, reader: Reader) -> None:
        """Refuse a reply without weights."""
        if not self.weights:
            raise reader.fail("brings no weights")
