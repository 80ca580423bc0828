"""The messages of clients with a loss of their own: a round of local steps in one exchange.

CSE-FSL, HERON-SFL and FSL-SAGE share them; each method has a request type of its own, so that a
client knows whom to call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.messages import MAX_STEPS, Setup, check_batch
from sfl_flower.wire.padding import sent_bytes
from sfl_flower.wire.usage import METERS, NO_USAGE, Usage
from sfl_flower.wire.weights import WEIGHT_DTYPES, Packed, packed_bytes, prefixed

__all__ = ["LocalReply", "LocalRequest"]

_WEIGHTS, _HEAD = "weights.", "head."


@dataclass(frozen=True)
class LocalRequest:
    """Ask for h local steps, with the smashed data of every k-th.

    Attributes
    ----------
    steps, upload_every : int
        h and k: steps 0, k, 2k, … < h send smashed data.
    head : str
        Kind of the auxiliary head.
    optimizer : str
        The client optimiser and its settings of this round as canonical JSON.
    keep_state : bool
        Whether the optimiser's state of the last round is taken up.
    weights, head_weights : Packed
        Packed client half and head.
    meter : {"none", "memory", "flops"}
        What to measure.
    """

    TYPE: ClassVar[str] = "train.local"

    round: int
    steps: int
    upload_every: int
    batch_size: int
    setup: Setup
    head: str
    optimizer: str
    keep_state: bool
    weights: Packed
    head_weights: Packed = field(default_factory=dict)
    meter: str = "none"

    def own(self) -> dict[str, Any]:
        """Return the settings of the method that travel."""
        return {}

    @classmethod
    def read_own(cls, reader: Reader) -> dict[str, Any]:
        """Read the settings of the method as arguments of the class."""
        return {}

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config: dict[str, Any] = {
            "round": self.round,
            "steps": self.steps,
            "upload-every": self.upload_every,
            "batch-size": self.batch_size,
            "head": self.head,
            "optimizer": self.optimizer,
            "keep-state": self.keep_state,
            "meter": self.meter,
        }
        return pack(
            prefixed(_WEIGHTS, self.weights) | prefixed(_HEAD, self.head_weights),
            {**config, **self.own(), **self.setup.config()},
            {},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {"weights": packed_bytes(self.weights), "auxiliary": packed_bytes(self.head_weights)}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        steps = reader.integer("steps", low=1, high=MAX_STEPS)
        request = cls(
            round=reader.integer("round"),
            steps=steps,
            upload_every=reader.integer("upload-every", low=1, high=MAX_STEPS),
            batch_size=reader.integer("batch-size", low=1),
            setup=Setup.read(reader),
            head=reader.text("head"),
            optimizer=reader.text("optimizer"),
            keep_state=reader.boolean("keep-state"),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            head_weights=reader.group(_HEAD, WEIGHT_DTYPES),
            meter=reader.text("meter", METERS),
            **cls.read_own(reader),
        )
        reader.done()
        return request


@dataclass(frozen=True)
class LocalReply:
    """What a client's local steps gave.

    Attributes
    ----------
    samples : int
        Samples of all steps, uploaded or not.
    z, y : numpy.ndarray
        Smashed data float32 [n, ...] and labels int64 [n, ...] of the uploading steps, in order.
    sizes : numpy.ndarray
        Samples of each of these steps, int64, summing to n.
    loss : float
        Mean local loss of the steps.
    weights, head_weights : Packed
        Packed client half and head; with scalars, only their buffers.
    scalars : numpy.ndarray or None
        v, float32 [steps, P], for a client that sends them in place of weights.
    taken : numpy.ndarray or None
        1 for each step that was taken and 0 for one that was skipped, uint8 [steps]; from clients
        that skip steps. Booked as control.
    usage : Usage
        What was measured.
    """

    round: int
    samples: int
    z: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    loss: float
    weights: Packed = field(default_factory=dict)
    head_weights: Packed = field(default_factory=dict)
    scalars: np.ndarray | None = None
    taken: np.ndarray | None = None
    usage: Usage = NO_USAGE

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        arrays = prefixed(_WEIGHTS, self.weights) | prefixed(_HEAD, self.head_weights)
        arrays |= {"z": self.z, "y": self.y, "sizes": self.sizes}
        if self.scalars is not None:
            arrays["scalars"] = self.scalars
        if self.taken is not None:
            arrays["taken"] = self.taken
        return pack(
            arrays,
            {"status": "ok", "round": self.round, "loss": self.loss},
            {"num-examples": self.samples, **self.usage.metrics()},
        )

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {
            "smashed": sent_bytes("z", self.z),
            "labels": self.y.nbytes,
            "scalars": 0 if self.scalars is None else self.scalars.nbytes,
            "weights": packed_bytes(self.weights),
            "auxiliary": packed_bytes(self.head_weights),
        }

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield smashed data and labels of each uploading step."""
        end = 0
        for size in self.sizes.tolist():
            start, end = end, end + size
            yield self.z[start:end], self.y[start:end]

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "local reply")
        reader.text("status", ("ok",))
        reply = cls(
            round=reader.integer("round"),
            samples=reader.metric("num-examples", low=1),
            z=reader.padded("z"),
            y=reader.array("y", "int64"),
            sizes=reader.array("sizes", "int64", ndim=1),
            loss=reader.number("loss", -1e30, 1e30),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            head_weights=reader.group(_HEAD, WEIGHT_DTYPES),
            scalars=reader.array("scalars", "float32", ndim=2) if reader.has("scalars") else None,
            taken=reader.array("taken", "uint8", ndim=1) if reader.has("taken") else None,
            usage=Usage.read(reader),
        )
        reader.done()
        if reply.sizes.size or reply.z.size or reply.y.size:  # else no step was to send any
            check_batch(reader, reply.z, reply.y, reply.sizes)
        return reply
