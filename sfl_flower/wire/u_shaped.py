"""The messages of the U-shaped method: smashed data without labels, then features to the tail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np

from sfl_flower.wire.common import Setup, check_batch
from sfl_flower.wire.fields import (
    BatchSize,
    CutGradients,
    HeadWeights,
    Samples,
    Smashed,
    Statistics,
    Steps,
    Version,
    array,
    text,
    whole,
)
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.wire.message import Reply, Request
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = ["ORDERS", "TailReply", "TailRequest", "UnlabelledReply"]

ORDERS = ("first", "zeroth")
"""How a client finds the gradients of its tail: by backprop through it, or by forwards alone."""

RowSizes = Annotated[
    np.ndarray,
    array("int64", ndim=1).unless(lambda told: np.array([len(told["z"])], np.int64)),
]
"""Samples of each mini-batch, int64, summing to n; of one they are those of the smashed data."""


@dataclass(frozen=True)
class UnlabelledReply(Reply):
    """Smashed data of the mini-batches of a round, one after another, and no labels.

    Attributes
    ----------
    sizes : numpy.ndarray
        Samples of each mini-batch, int64.
    statistics : Mapping[str, numpy.ndarray]
        As in `ForwardReply`.
    """

    WHAT: ClassVar[str] = "unlabelled reply"

    round: int
    version: Version
    z: Smashed
    sizes: RowSizes
    usage: Usage = NO_USAGE
    statistics: Statistics = field(default_factory=dict)

    def examples(self) -> int:
        """Return the number of samples."""
        return len(self.z)

    def check(self, reader: Reader) -> None:
        """Refuse sizes that do not fit the samples."""
        check_batch(reader, self.z, np.zeros(len(self.z), np.int64), self.sizes)

    def told(self, gradients: np.ndarray) -> ForwardReply:
        """Return the reply with gradients at the features where others have labels."""
        return ForwardReply(**vars(self), y=gradients)


@dataclass(frozen=True)
class TailRequest(Request):
    """Features of the round's mini-batches; the client knows their labels.

    Attributes
    ----------
    features : numpy.ndarray
        What the server's body gives for the client's smashed data, float32 [n, ...].
    tail : str
        The kind of the tail (`sfl_flower.task.models.TAIL`).
    order : {"first", "zeroth"}
        How gradients are found.
    probes : int
        Forwards of the tail beside the first, for each kind of gradient; of zeroth order.
    head_weights : Packed
        The tail.
    """

    ACTION: ClassVar[str] = "tail"

    round: int
    batch_size: BatchSize
    minibatches: Steps
    setup: Setup
    features: Smashed
    tail: Annotated[str, text().stands()]
    order: Annotated[str, text(ORDERS).stands()]
    probes: Annotated[int, whole(1, 100_000).stands().called("tail-probes")]
    head_weights: HeadWeights
    meter: Meter = "none"


@dataclass(frozen=True)
class TailReply(Reply):
    """Gradients of the mean loss of each mini-batch, at its features and at the tail.

    Attributes
    ----------
    gradients : numpy.ndarray
        At the features, float32, their shape.
    head_weights : Packed
        At the tail's parameters, each named by its mini-batch, a dot and its own name.
    losses : numpy.ndarray
        The mean losses, float64 [minibatches].
    """

    WHAT: ClassVar[str] = "tail reply"

    round: int
    samples: Samples
    gradients: CutGradients
    head_weights: HeadWeights
    losses: Annotated[np.ndarray, array("float64", ndim=1)]
    usage: Usage = NO_USAGE
