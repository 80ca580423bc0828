"""The messages of clients with a loss of their own: a round of local steps in one exchange.

CSE-FSL, HERON-SFL and FSL-SAGE share them; each method has a request type of its own, so that a
client knows whom to call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np

from sfl_flower.wire.common import Setup, check_batch
from sfl_flower.wire.downlink import WEIGHTS, Way, change_bytes
from sfl_flower.wire.fields import (
    BatchSize,
    HeadWeights,
    Labels,
    Loss,
    Scalars,
    Sizes,
    Smashed,
    Steps,
    Trained,
    Weights,
    array,
    hexadecimal,
    octets,
)
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.probing import Dcor
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = ["LocalReply", "LocalRequest"]


@dataclass(frozen=True)
class LocalRequest(Request):
    """Ask for h local steps, with the smashed data of every k-th.

    Attributes
    ----------
    steps, upload_every : int
        h and k: steps 0, k, 2k, … < h send smashed data.
    head : str
        Kind of the auxiliary head.
    weights, head_weights : Packed
        Client half and head; of what the client is to have by changes, what these do not tell of.
    downlink, head_downlink : str
        How client half and head come down, see `sfl_flower.wire.downlink`.
    holds : str or None
        Names what the client holds of them afterwards, in hex; None where it keeps nothing.
    base : str or None
        Names what it must hold before; None where both came whole.
    changes : bytes or None
        What changed in between; None for nothing.
    """

    ACTION: ClassVar[str] = "local"

    round: int
    steps: Steps
    upload_every: Steps
    batch_size: BatchSize
    setup: Setup
    head: str
    optimizer: str
    keep_state: bool
    weights: Weights
    head_weights: HeadWeights = field(default_factory=dict)
    meter: Meter = "none"
    downlink: Way = WEIGHTS
    head_downlink: Way = WEIGHTS
    holds: Annotated[str, hexadecimal()] | None = None
    base: Annotated[str, hexadecimal()] | None = None
    changes: Annotated[bytes, octets(change_bytes)] | None = None

    def check(self, reader: Reader) -> None:
        """Refuse changes since nothing, and a version that is to be held of what comes whole."""
        follows = any(way != WEIGHTS for way in self.followed)
        if follows != (self.holds is not None):
            raise reader.fail("does not say what the client is to hold, or says it needlessly")
        if (self.changes is not None and self.base is None) or (self.base and not follows):
            raise reader.fail("brings changes without saying since when")

    @property
    def followed(self) -> tuple[str, ...]:
        """How that comes down which `holds` names."""
        return self.downlink, self.head_downlink

    def asks(self) -> Asked:
        """Ask for every k-th step's smashed data."""
        return Asked(batches=-(-self.steps // self.upload_every), steps=self.steps)


@dataclass(frozen=True)
class LocalReply(Reply):
    """What a client's local steps gave.

    Attributes
    ----------
    samples : int
        Samples of all steps, uploaded or not.
    z, y, sizes : numpy.ndarray
        Smashed data and labels of the uploading steps, in order, and samples of each.
    loss : float
        Mean local loss of the steps.
    weights, head_weights : Packed
        Client half and head; with scalars, only their buffers.
    scalars : numpy.ndarray or None
        v, from a client that sends them in place of weights.
    taken : numpy.ndarray or None
        1 for each step that was taken and 0 for one that was skipped, uint8 [steps]; from clients
        that skip steps. Booked as control.
    dcor : float or None
        Mean distance correlation of the inputs of steps with their smashed data, of those that were
        taken and say any; from clients that measure it, `NO_DCOR` where there was none.
    """

    WHAT: ClassVar[str] = "local reply"

    round: int
    samples: Trained
    z: Smashed
    y: Labels
    sizes: Sizes
    loss: Loss
    weights: Weights = field(default_factory=dict)
    head_weights: HeadWeights = field(default_factory=dict)
    scalars: Scalars | None = None
    taken: Annotated[np.ndarray, array("uint8", ndim=1)] | None = None
    usage: Usage = NO_USAGE
    dcor: Dcor | None = None

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield smashed data and labels of each uploading step."""
        end = 0
        for size in self.sizes.tolist():
            start, end = end, end + size
            yield self.z[start:end], self.y[start:end]

    def check(self, reader: Reader) -> None:
        """Refuse samples, labels and sizes that do not fit one another."""
        if self.sizes.size or self.z.size or self.y.size:  # else no step was to send any
            check_batch(reader, self.z, self.y, self.sizes)
