"""The messages of MU-SplitFed: three forwards up and one scalar down, weights around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.messages import Setup, check_batch
from sfl_flower.wire.padding import sent_bytes
from sfl_flower.wire.usage import METERS, NO_USAGE, Usage
from sfl_flower.wire.weights import WEIGHT_DTYPES, Packed, packed_bytes, prefixed

__all__ = ["MUForwardReply", "MUForwardRequest", "MUStepReply", "MUStepRequest"]

_WEIGHTS = "weights."


@dataclass(frozen=True)
class MUForwardRequest:
    """Ask for the three forwards of a round.

    Attributes
    ----------
    law : str
        The direction law.
    mu : float
        Probe length μ.
    weights : Packed
        Packed client half.
    eval_mode : bool
        Whether the client half runs in eval mode.
    """

    TYPE: ClassVar[str] = "train.mu_forward"

    round: int
    batch_size: int
    setup: Setup
    law: str
    mu: float
    weights: Packed
    eval_mode: bool = False
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config: dict[str, Any] = {
            "round": self.round,
            "batch-size": self.batch_size,
            "law": self.law,
            "mu": self.mu,
            "eval-mode": self.eval_mode,
            "meter": self.meter,
        }
        arrays = prefixed(_WEIGHTS, self.weights)
        return pack(arrays, {**config, **self.setup.config()}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"weights": packed_bytes(self.weights)}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        request = cls(
            round=reader.integer("round"),
            batch_size=reader.integer("batch-size", low=1),
            setup=Setup.read(reader),
            law=reader.text("law"),
            mu=reader.number("mu", 1e-30, 1e30),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            eval_mode=reader.boolean("eval-mode"),
            meter=reader.text("meter", METERS),
        )
        reader.done()
        return request


@dataclass(frozen=True)
class MUForwardReply:
    """Smashed data of one mini-batch at three points, and its labels.

    Attributes
    ----------
    anchor, plus, minus : numpy.ndarray
        Smashed data at θ_c, θ_c + μu and θ_c - μu, float32, each of shape [n, ...].
    y : numpy.ndarray
        Labels, int64, shape [n, ...].
    """

    round: int
    anchor: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    y: np.ndarray
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        return pack(
            {"anchor": self.anchor, "plus": self.plus, "minus": self.minus, "y": self.y},
            {"status": "ok", "round": self.round},
            {"num-examples": int(self.y.shape[0]), **self.usage.metrics()},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        three = {"anchor": self.anchor, "plus": self.plus, "minus": self.minus}
        smashed = sum(sent_bytes(name, z) for name, z in three.items())
        return {"smashed": smashed, "labels": self.y.nbytes}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "three-forwards reply")
        reader.text("status", ("ok",))
        reply = cls(
            round=reader.integer("round"),
            anchor=reader.padded("anchor"),
            plus=reader.padded("plus"),
            minus=reader.padded("minus"),
            y=reader.array("y", "int64"),
            usage=Usage.read(reader),
        )
        reader.done()
        shapes = reply.anchor.shape, reply.plus.shape, reply.minus.shape
        if len(set(shapes)) > 1:
            raise reader.fail(f"has smashed data of the shapes {shapes}, which must be equal")
        sizes = np.array(reply.y.shape[:1], dtype=np.int64)
        check_batch(reader, reply.anchor, reply.y, sizes)
        return reply


@dataclass(frozen=True)
class MUStepRequest:
    """Give a client the scalar of its round; it steps and sends its weights.

    Attributes
    ----------
    law : str
        The direction law.
    mu : float
        Probe length μ.
    lr : float
        Learning rate of the step.
    scalar : numpy.ndarray
        Δ, the loss at θ_c + μu less the loss at θ_c - μu, float32, shape [1].
    """

    TYPE: ClassVar[str] = "train.mu_step"

    round: int
    setup: Setup
    law: str
    mu: float
    lr: float
    scalar: np.ndarray
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config: dict[str, Any] = {
            "round": self.round,
            "law": self.law,
            "mu": self.mu,
            "lr": self.lr,
            "meter": self.meter,
        }
        return pack({"scalar": self.scalar}, {**config, **self.setup.config()}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"scalars": self.scalar.nbytes}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        request = cls(
            round=reader.integer("round"),
            setup=Setup.read(reader),
            law=reader.text("law"),
            mu=reader.number("mu", 1e-30, 1e30),
            lr=reader.number("lr", 0.0, 1e30),
            scalar=reader.array("scalar", "float32", shape=(1,)),
            meter=reader.text("meter", METERS),
        )
        reader.done()
        return request


@dataclass(frozen=True)
class MUStepReply:
    """A client's weights after its step.

    Attributes
    ----------
    weights : Packed
        Packed client half.
    """

    round: int
    weights: Packed
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        arrays = prefixed(_WEIGHTS, self.weights)
        metrics = {"num-examples": 0, **self.usage.metrics()}
        return pack(arrays, {"status": "ok", "round": self.round}, metrics)

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"weights": packed_bytes(self.weights)}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "weights reply")
        reader.text("status", ("ok",))
        reply = cls(
            round=reader.integer("round"),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            usage=Usage.read(reader),
        )
        reader.done()
        if not reply.weights:
            raise reader.fail("brings no weights")
        return reply
