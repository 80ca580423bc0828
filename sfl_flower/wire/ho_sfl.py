"""The messages of methods with zeroth-order or frozen clients: forward, then probe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np

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
    number,
    octets,
    whole,
)
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.probing import Dcor, GuideSigns, Probes, Seal
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = [
    "ForwardReply",
    "ForwardRequest",
    "PipelinedReply",
    "PipelinedRequest",
    "ProbeReply",
    "ProbeRequest",
    "read_pipelined",
]


@dataclass(frozen=True)
class ForwardRequest(Request):
    """Ask for the anchor forward of a round; in HO-SFL probes follow.

    Attributes
    ----------
    sync : Sync
        How to come to the current version first.
    statistics : Mapping[str, numpy.ndarray]
        Running statistics from which the anchor forward moves them; none where it moves none.
    known : bytes or None
        What the server remembers of these samples, a `memory_digest`; None where it keeps nothing.
    temporal : float
        Share of its norm below which a change of a sample's smashed data does not travel.
    """

    ACTION: ClassVar[str] = "forward"

    round: int
    batch_size: BatchSize
    minibatches: Steps
    setup: Setup
    sync: Sync
    meter: Meter = "none"
    statistics: Statistics = field(default_factory=dict)
    known: Annotated[bytes, octets()] | None = None
    temporal: Annotated[float, number(0.0, 1.0).stands()] = 0.0

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
    changed : bytes or None
        A bit of each sample, the first the highest: whether `z` has it, as the difference from what
        is remembered. None where `z` has all of all.
    """

    WHAT: ClassVar[str] = "forward reply"

    round: int
    version: Version
    z: Smashed
    y: Labels
    sizes: Sizes
    usage: Usage = NO_USAGE
    statistics: Statistics = field(default_factory=dict)
    changed: Annotated[bytes, octets()] | None = None

    def examples(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    def changed_rows(self) -> np.ndarray:
        """Return which samples `z` has, bool, shape [n]."""
        n = len(self.y)
        if self.changed is None:
            return np.ones(n, bool)
        return np.unpackbits(np.frombuffer(self.changed, np.uint8))[:n].astype(bool)

    def check(self, reader: Reader) -> None:
        """Refuse samples, labels and sizes that do not fit one another."""
        if self.changed is None:
            check_batch(reader, self.z, self.y, self.sizes)
            return
        n, rows = len(self.y), self.changed_rows()
        if len(self.changed) != -(-n // 8) or self.changed != np.packbits(rows).tobytes():
            raise reader.fail(
                f"has {len(self.changed)} bytes that say which of {n} samples changed"
            )
        check_batch(reader, self.z, self.y[rows])
        check_batch(reader, np.empty((n, 1)), self.y, self.sizes)


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
    seal : bytes, optional
        That of the round, where its directions are not known without.
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
    seal: Seal | None = None

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

    Attributes
    ----------
    dcor : float or None
        Mean distance correlation of the inputs of mini-batches with their smashed data, of those
        that say any; from clients that measure it, `NO_DCOR` where there was none.
    """

    WHAT: ClassVar[str] = "probe reply"

    round: int
    scalars: Scalars
    samples: Samples
    usage: Usage = NO_USAGE
    dcor: Dcor | None = None


_OF_PROBES = ("lam", "stream", "probing", "guide", "seal")


@dataclass(frozen=True)
class PipelinedRequest(ForwardRequest):
    """Ask for the probes of the round before, and for the anchor forward of this one.

    The client probes where it stood at the anchor forward of the round before; it syncs then.

    Attributes
    ----------
    lam, stream, probing, guide, seal
        As in `ProbeRequest`, of the round before.
    """

    ACTION: ClassVar[str] = "pipelined"
    ANSWER: ClassVar[str] = "pipelined reply"

    lam: CutGradients = field(kw_only=True)
    stream: Annotated[int, whole().stands()] = field(kw_only=True)
    probing: Probes = field(kw_only=True)
    guide: GuideSigns | None = field(kw_only=True, default=None)
    seal: Seal | None = field(kw_only=True, default=None)

    @classmethod
    def of(cls, anchor: ForwardRequest, probe: ProbeRequest) -> PipelinedRequest:
        """Return the two requests as one."""
        own = {name: vars(probe)[name] for name in _OF_PROBES}
        return cls(**vars(anchor), **own)

    def probes(self) -> ProbeRequest:
        """Return the request for the probes alone."""
        return ProbeRequest(
            round=self.round - 1,
            batch_size=self.batch_size,
            minibatches=self.minibatches,
            setup=self.setup,
            lam=self.lam,
            stream=self.stream,
            probing=self.probing,
            meter=self.meter,
            guide=self.guide,
            seal=self.seal,
        )

    def asks(self) -> Asked:
        """Ask for what the two requests ask for."""
        return super().asks()._replace(scalars=self.probes().asks().scalars)


@dataclass(frozen=True)
class PipelinedReply(ForwardReply):
    """The scalars of the round before, and smashed data and labels of this one.

    Attributes
    ----------
    scalars, dcor : numpy.ndarray, float or None
        As in `ProbeReply`.
    """

    WHAT: ClassVar[str] = "pipelined reply"

    scalars: Scalars = field(kw_only=True)
    dcor: Dcor | None = field(kw_only=True, default=None)


def read_pipelined(reader: Reader) -> ForwardReply | ProbeReply:
    """Read what a client of a pipelined run answers: smashed data, scalars, or both."""
    if not reader.has("scalars"):
        return ForwardReply.from_reader(reader)
    return (PipelinedReply if reader.has("y") else ProbeReply).from_reader(reader)
