"""The messages of methods with zeroth-order or frozen clients: forward, then probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.messages import MAX_STEPS, Setup, Sync, check_batch
from sfl_flower.wire.padding import sent_bytes
from sfl_flower.wire.usage import METERS, NO_USAGE, Usage

__all__ = ["AnchorRequest", "ForwardReply", "ForwardRequest", "ProbeReply", "ProbeRequest"]

MAX_PROBES = 65_536


@dataclass(frozen=True)
class ForwardRequest:
    """Ask for the anchor forward of a round, to be followed by probes.

    Attributes
    ----------
    round, batch_size, minibatches : int
        Which batches to run; the client draws them from its own data.
    data : Setup
        Where its data comes from.
    sync : Sync
        How to come to the current version first.
    eval_mode : bool
        Whether the client half runs in eval mode.
    meter : {"none", "memory", "flops"}
        What to measure.
    """

    TYPE: ClassVar[str] = "train.forward"

    round: int
    batch_size: int
    minibatches: int
    setup: Setup
    sync: Sync
    eval_mode: bool = False
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config: dict[str, Any] = {
            "round": self.round,
            "batch-size": self.batch_size,
            "minibatches": self.minibatches,
            "eval-mode": self.eval_mode,
            "meter": self.meter,
        }
        return pack(self.sync.arrays(), {**config, **self.setup.config(), **self.sync.config()}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return self.sync.payload()

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        request = cls(
            round=reader.integer("round"),
            batch_size=reader.integer("batch-size", low=1),
            minibatches=reader.integer("minibatches", low=1, high=MAX_STEPS),
            setup=Setup.read(reader),
            sync=Sync.read(reader),
            eval_mode=reader.boolean("eval-mode"),
            meter=reader.text("meter", METERS),
        )
        reader.done()
        return request


@dataclass(frozen=True)
class AnchorRequest(ForwardRequest):
    """Ask for the anchor forward of a round, with nothing to follow."""

    TYPE: ClassVar[str] = "train.anchor"


@dataclass(frozen=True)
class ForwardReply:
    """Smashed data and labels of the mini-batches of a round.

    Attributes
    ----------
    round, version : int
        The round asked for and the client's version before the sync.
    z : numpy.ndarray
        Smashed data, float32, shape [n, ...], the mini-batches one after another.
    y : numpy.ndarray
        Labels, int64, shape [n, ...].
    sizes : numpy.ndarray
        Samples of each mini-batch, int64, shape [minibatches], summing to n.
    usage : Usage
        What was measured.
    """

    round: int
    version: int
    z: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        return pack(
            {"z": self.z, "y": self.y, "sizes": self.sizes},
            {"status": "ok", "round": self.round, "version": self.version},
            {"num-examples": int(self.y.shape[0]), **self.usage.metrics()},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"smashed": sent_bytes("z", self.z), "labels": self.y.nbytes}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "forward reply")
        reader.text("status", ("ok",))
        reply = cls(
            round=reader.integer("round"),
            version=reader.integer("version", low=-1),
            z=reader.padded("z"),
            y=reader.array("y", "int64"),
            sizes=reader.array("sizes", "int64", ndim=1),
            usage=Usage.read(reader),
        )
        reader.done()
        check_batch(reader, reply.z, reply.y, reply.sizes)
        return reply


@dataclass(frozen=True)
class ProbeRequest:
    """Cut gradients of the round's batches, and which directions to probe along.

    Attributes
    ----------
    lam : numpy.ndarray
        λ, the gradient of each mini-batch's mean loss at z, float32, shape of z.
    stream : int
        Whose directions: 0 for those shared by the round, partition + 1 for the client's own.
    law : str
        The direction law.
    mu : float
        Probe length μ.
    central : bool
        Central instead of forward differences.
    """

    TYPE: ClassVar[str] = "train.probe"

    round: int
    version: int
    digest: str
    batch_size: int
    minibatches: int
    setup: Setup
    lam: np.ndarray
    stream: int
    probes: int
    law: str
    mu: float
    central: bool = False
    eval_mode: bool = False
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config: dict[str, Any] = {
            "round": self.round,
            "version": self.version,
            "digest": self.digest,
            "batch-size": self.batch_size,
            "minibatches": self.minibatches,
            "stream": self.stream,
            "probes": self.probes,
            "law": self.law,
            "mu": self.mu,
            "central": self.central,
            "eval-mode": self.eval_mode,
            "meter": self.meter,
        }
        return pack({"lam": self.lam}, {**config, **self.setup.config()}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"gradients": sent_bytes("lam", self.lam)}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        request = cls(
            round=reader.integer("round"),
            version=reader.integer("version"),
            digest=reader.text("digest"),
            batch_size=reader.integer("batch-size", low=1),
            minibatches=reader.integer("minibatches", low=1, high=MAX_STEPS),
            setup=Setup.read(reader),
            lam=reader.padded("lam"),
            stream=reader.integer("stream"),
            probes=reader.integer("probes", low=1, high=MAX_PROBES),
            law=reader.text("law"),
            mu=reader.number("mu", 1e-30, 1e30),
            central=reader.boolean("central"),
            eval_mode=reader.boolean("eval-mode"),
            meter=reader.text("meter", METERS),
        )
        reader.done()
        return request


@dataclass(frozen=True)
class ProbeReply:
    """The scalars v of a client's probes.

    Attributes
    ----------
    scalars : numpy.ndarray
        v, float32, shape [minibatches, probes].
    """

    round: int
    version: int
    scalars: np.ndarray
    samples: int
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        return pack(
            {"scalars": self.scalars},
            {"status": "ok", "round": self.round, "version": self.version},
            {"num-examples": self.samples, **self.usage.metrics()},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"scalars": self.scalars.nbytes}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "probe reply")
        reader.text("status", ("ok",))
        reply = cls(
            round=reader.integer("round"),
            version=reader.integer("version"),
            scalars=reader.array("scalars", "float32", ndim=2),
            samples=reader.metric("num-examples"),
            usage=Usage.read(reader),
        )
        reader.done()
        return reply
