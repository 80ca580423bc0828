"""The messages of DeComFL: what a client missed down, scalars of its local walk back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.fedavg import MAX_LOSS
from sfl_flower.wire.hybrid import MAX_PROBES
from sfl_flower.wire.messages import MAX_STEPS, Setup, Sync
from sfl_flower.wire.usage import METERS, NO_USAGE, Usage

__all__ = ["WalkReply", "WalkRequest"]


@dataclass(frozen=True)
class WalkRequest:
    """Ask a client to catch up and to walk some zeroth-order steps along the round's directions.

    Attributes
    ----------
    steps, probes : int
        H local steps, a mini-batch each, and P probes a step.
    sync : Sync
        How to come to the current version first.
    law : str
        The direction law.
    mu : float
        Probe length μ.
    lr : float
        Learning rate of the local steps.
    central : bool
        Central instead of forward differences.
    eval_mode : bool
        Whether the model runs in eval mode.
    """

    TYPE: ClassVar[str] = "train.walk"

    round: int
    steps: int
    probes: int
    batch_size: int
    setup: Setup
    sync: Sync
    law: str
    mu: float
    lr: float
    central: bool = False
    eval_mode: bool = False
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config: dict[str, Any] = {
            "round": self.round,
            "steps": self.steps,
            "probes": self.probes,
            "batch-size": self.batch_size,
            "law": self.law,
            "mu": self.mu,
            "lr": self.lr,
            "central": self.central,
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
            steps=reader.integer("steps", low=1, high=MAX_STEPS),
            probes=reader.integer("probes", low=1, high=MAX_PROBES),
            batch_size=reader.integer("batch-size", low=1),
            setup=Setup.read(reader),
            sync=Sync.read(reader),
            law=reader.text("law"),
            mu=reader.number("mu", 1e-30, 1e30),
            lr=reader.number("lr", 0.0, 1e30),
            central=reader.boolean("central"),
            eval_mode=reader.boolean("eval-mode"),
            meter=reader.text("meter", METERS),
        )
        reader.done()
        return request


@dataclass(frozen=True)
class WalkReply:
    """The scalars of a client's local walk.

    Attributes
    ----------
    round, version : int
        The round asked for and the client's version before the sync.
    scalars : numpy.ndarray
        v, float32, shape [steps, probes].
    samples : int
        Samples of all its mini-batches.
    loss : float
        Mean of the losses along the walk.
    """

    round: int
    version: int
    scalars: np.ndarray
    samples: int
    loss: float
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        return pack(
            {"scalars": self.scalars},
            {"status": "ok", "round": self.round, "version": self.version, "loss": self.loss},
            {"num-examples": self.samples, **self.usage.metrics()},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"scalars": self.scalars.nbytes}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "walk reply")
        reader.text("status", ("ok",))
        reply = cls(
            round=reader.integer("round"),
            version=reader.integer("version", low=-1),
            scalars=reader.array("scalars", "float32", ndim=2),
            samples=reader.metric("num-examples", low=1),
            loss=reader.number("loss", -MAX_LOSS, MAX_LOSS),
            usage=Usage.read(reader),
        )
        reader.done()
        return reply
