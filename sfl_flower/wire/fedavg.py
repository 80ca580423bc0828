"""The messages of FedAvg: the whole model down, the whole model back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from flwr.app import RecordDict

from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.messages import MAX_STEPS, Setup
from sfl_flower.wire.usage import METERS, NO_USAGE, Usage
from sfl_flower.wire.weights import WEIGHT_DTYPES, Packed, packed_bytes, prefixed

__all__ = ["FullReply", "FullRequest"]

_WEIGHTS = "weights."
MAX_LOSS = 1e30


@dataclass(frozen=True)
class FullRequest:
    """Ask a client to train the whole model on its own data.

    Attributes
    ----------
    steps : int
        Mini-batches to train on, one optimiser step each.
    optimizer : str
        The client optimiser and its settings as canonical JSON.
    keep_state : bool
        Whether the optimiser goes on with the state it had.
    weights : Packed
        Packed parameters and buffers of the whole model.
    """

    TYPE: ClassVar[str] = "train.full"

    round: int
    steps: int
    batch_size: int
    setup: Setup
    optimizer: str
    keep_state: bool
    weights: Packed
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config: dict[str, Any] = {
            "round": self.round,
            "steps": self.steps,
            "batch-size": self.batch_size,
            "optimizer": self.optimizer,
            "keep-state": self.keep_state,
            "meter": self.meter,
        }
        return pack(prefixed(_WEIGHTS, self.weights), {**config, **self.setup.config()}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"weights": packed_bytes(self.weights)}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        request = cls(
            round=reader.integer("round"),
            steps=reader.integer("steps", low=1, high=MAX_STEPS),
            batch_size=reader.integer("batch-size", low=1),
            setup=Setup.read(reader),
            optimizer=reader.text("optimizer"),
            keep_state=reader.boolean("keep-state"),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            meter=reader.text("meter", METERS),
        )
        reader.done()
        return request


@dataclass(frozen=True)
class FullReply:
    """The whole model after a client's local steps.

    Attributes
    ----------
    samples : int
        Samples of all its mini-batches.
    loss : float
        Mean of their losses, each before its step.
    weights : Packed
        Packed parameters and buffers of the whole model.
    """

    round: int
    samples: int
    loss: float
    weights: Packed
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        return pack(
            prefixed(_WEIGHTS, self.weights),
            {"status": "ok", "round": self.round, "loss": self.loss},
            {"num-examples": self.samples, **self.usage.metrics()},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"weights": packed_bytes(self.weights)}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "full reply")
        reader.text("status", ("ok",))
        reply = cls(
            round=reader.integer("round"),
            samples=reader.metric("num-examples", low=1),
            loss=reader.number("loss", -MAX_LOSS, MAX_LOSS),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            usage=Usage.read(reader),
        )
        reader.done()
        return reply
