"""The messages of SplitFed: one exchange ends a step and begins the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.messages import MAX_STEPS, Setup, check_batch
from sfl_flower.wire.padding import sent_bytes
from sfl_flower.wire.usage import METERS, NO_USAGE, Usage
from sfl_flower.wire.weights import WEIGHT_DTYPES, Packed, packed_bytes, prefixed

__all__ = ["StepReply", "StepRequest"]

_WEIGHTS = "weights."


@dataclass(frozen=True)
class StepRequest:
    """One exchange of SplitFed: finish the previous step with λ, begin the next.

    Attributes
    ----------
    step : int
        The step to begin, 0 … steps; at `steps` the client only finishes and sends its weights.
    weights : Packed
        Packed client half at step 0, else empty.
    lam : numpy.ndarray or None
        λ of step - 1, float32, shape of that step's z; None at step 0.
    optimizer : str
        The client optimiser and its settings as canonical JSON.
    """

    TYPE: ClassVar[str] = "train.step"

    round: int
    step: int
    steps: int
    batch_size: int
    setup: Setup
    optimizer: str
    keep_state: bool
    weights: Packed = field(default_factory=dict)
    lam: np.ndarray | None = None
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        arrays = prefixed(_WEIGHTS, self.weights)
        if self.lam is not None:
            arrays["lam"] = self.lam
        config: dict[str, Any] = {
            "round": self.round,
            "step": self.step,
            "steps": self.steps,
            "batch-size": self.batch_size,
            "optimizer": self.optimizer,
            "keep-state": self.keep_state,
            "meter": self.meter,
        }
        return pack(arrays, {**config, **self.setup.config()}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {
            "weights": packed_bytes(self.weights),
            "gradients": sent_bytes("lam", self.lam),
        }

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        steps = reader.integer("steps", low=1, high=MAX_STEPS)
        request = cls(
            round=reader.integer("round"),
            step=reader.integer("step", high=steps),
            steps=steps,
            batch_size=reader.integer("batch-size", low=1),
            setup=Setup.read(reader),
            optimizer=reader.text("optimizer"),
            keep_state=reader.boolean("keep-state"),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            lam=reader.padded("lam") if reader.has("lam") else None,
            meter=reader.text("meter", METERS),
        )
        reader.done()
        if (request.step == 0) != bool(request.weights) or (request.step == 0) == (
            request.lam is not None
        ):
            raise reader.fail("must bring weights at step 0 and a cut gradient at later steps")
        return request


@dataclass(frozen=True)
class StepReply:
    """Smashed data and labels of a SplitFed step, or the client's weights after the last.

    Attributes
    ----------
    z, y : numpy.ndarray or None
        Smashed data float32 [n, ...] and labels int64 [n, ...]; None after the last step.
    weights : Packed
        Packed client half after the last step, else empty.
    """

    WHAT: ClassVar[str] = "step reply"

    round: int
    step: int
    samples: int
    z: np.ndarray | None = None
    y: np.ndarray | None = None
    weights: Packed = field(default_factory=dict)
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        arrays = prefixed(_WEIGHTS, self.weights)
        if self.z is not None and self.y is not None:
            arrays |= {"z": self.z, "y": self.y}
        return pack(
            arrays,
            {"status": "ok", "round": self.round, "step": self.step},
            {"num-examples": self.samples, **self.usage.metrics()},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {
            "smashed": sent_bytes("z", self.z),
            "labels": 0 if self.y is None else self.y.nbytes,
            "weights": packed_bytes(self.weights),
        }

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, cls.WHAT)
        reader.text("status", ("ok",))
        weights = reader.group(_WEIGHTS, WEIGHT_DTYPES)
        z = None if weights else reader.padded("z")
        y = None if weights else reader.array("y", "int64")
        reply = cls(
            round=reader.integer("round"),
            step=reader.integer("step"),
            samples=reader.metric("num-examples"),
            z=z,
            y=y,
            weights=weights,
            usage=Usage.read(reader),
        )
        reader.done()
        if z is not None and y is not None:
            cls.check(reader, z, y)
        return reply

    @staticmethod
    def check(reader: Reader, z: np.ndarray, y: np.ndarray) -> None:
        """Refuse smashed data and labels that do not fit one another."""
        check_batch(reader, z, y, np.array([z.shape[0]], dtype=np.int64))
