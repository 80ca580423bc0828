"""The messages of methods with zeroth-order or frozen clients: forward, then probe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from sfl_flower.wire.common import Setup, Sync, check_batch
from sfl_flower.wire.fields import (
    BatchSize,
    CutGradients,
    Labels,
    Samples,
    Scalars,
    Sizes,
    Smashed,
    Statistics,
    Steps,
    Version,
    whole,
)
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.probing import GuideSigns, Probes
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = ["ForwardReply", "ForwardRequest", "ProbeReply", "ProbeRequest"]


@dataclass(frozen=True)
class ForwardRequest(Request):
    """Ask for the anchor forward of a round; in HO-SFL probes follow.

    Attributes
    ----------
    sync : Sync
        How to come to the current version first.
    statistics : Mapping[str, numpy.ndarray]
        Running statistics from which the anchor forward moves them; none where it moves none.
    """

    ACTION: ClassVar[str] = "forward"

    round: int
    batch_size: BatchSize
    minibatches: Steps
    setup: Setup
    sync: Sync
    meter: Meter = "none"
    statistics: Statistics = field(default_factory=dict)

    def asks(self) -> Asked:
        """Ask for a mini-batch of smashed data each."""
        return Asked(batches=self.minibatches)


@dataclass(frozen=True)
class ForwardReply(Reply):
    """Smashed data and labels of the mini-batches of a round, one after another.

    Attributes
    ----------
    statistics : Mapping[str, numpy.ndarray]
        Running statistics after them; those that the request brought.
    """

    WHAT: ClassVar[str] = "forward reply"

    round: int
    version: Version
    z: Smashed
    y: Labels
    sizes: Sizes
    usage: Usage = NO_USAGE
    statistics: Statistics = field(default_factory=dict)

    def examples(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    def check(self, reader: Reader) -> None:
        """Refuse samples, labels and sizes that do not fit one another."""
        check_batch(reader, self.z, self.y, self.sizes)


@dataclass(frozen=True)
class ProbeRequest(Request):
    """Cut gradients of the round's batches, and which directions to probe along.

    The client must stand where it stood at the anchor forward of the same round.

    Attributes
    ----------
    stream : int
        Whose directions: `SHARED_STREAM` for the round's, else the client's own.
    guide : Guide, optional
        One more direction, after the others, the same for all clients of the round.
    """

    ACTION: ClassVar[str] = "probe"

    round: int
    batch_size: BatchSize
    minibatches: Steps
    setup: Setup
    lam: CutGradients
    stream: Annotated[int, whole().stands()]
    probing: Probes
    meter: Meter = "none"
    guide: GuideSigns | None = None

    def asks(self) -> Asked:
        """Ask for a row of scalars for each mini-batch, that of the guide last."""
        channel, directions = self.probing.channel, self.probing.probes + (self.guide is not None)
        if not channel:
            return Asked(scalars=(self.minibatches, directions))
        return Asked(scalars=(self.minibatches, directions * (1 + self.lam.shape[channel])))


@dataclass(frozen=True)
class ProbeReply(Reply):
    """The scalars v of a client's probes, a row for each mini-batch, that of a guide last.

    Where channels are told apart, each probe has that of the whole and then one of each channel.
    """

    WHAT: ClassVar[str] = "probe reply"

    round: int
    scalars: Scalars
    samples: Samples
    usage: Usage = NO_USAGE
