"""What every message has in common, and the messages that no method owns: join, sync, stale.

A request goes from the server to a client, a reply back.  Each knows how to become the content
of a Flower message, how to come back from one, and what it carries by ledger category.  Shapes
that only the receiver can know (how many samples it asked for, how many probes) are checked by
the receiver with `expect_shape`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.errors import WireError
from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.weights import WEIGHT_DTYPES

__all__ = [
    "MAX_STEPS",
    "JoinReply",
    "JoinRequest",
    "Reply",
    "Request",
    "Setup",
    "StaleReply",
    "Sync",
    "check_batch",
    "expect_shape",
    "is_stale",
]

MAX_STEPS = 1_000_000
"""The most steps or mini-batches a request may name."""
_FULL = "state."


class Reply(Protocol):
    """What the exchange and the ledger need to know of a message."""

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category, control left out."""


class Request(Reply, Protocol):
    """A message from the server to a client."""

    TYPE: ClassVar[str]


def expect_shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array if it has this shape, else raise `WireError`."""
    if array.shape != shape:
        raise WireError(f"A reply has {what} of shape {array.shape}, expected {shape}.")
    return array


@dataclass(frozen=True)
class Sync:
    """How a client comes to the server's version of the client half.

    Attributes
    ----------
    kind : {"none", "tail", "full"}
        Nothing to do, replay of missing journal entries, or download.
    base_version, base_digest : int, str
        Where the client must stand for `none` and `tail`; ignored for `full`.
    version, digest : int, str
        Where it stands afterwards; the digest is the journal's, in hex.
    tail : bytes
        Encoded journal entries.
    state : Mapping[str, numpy.ndarray]
        For `full`: flat arrays of parameters, buffers and optimiser state.
    scalar_bytes, key_bytes : int
        What of the tail are coefficients, and what names directions.
    """

    kind: Literal["none", "tail", "full"]
    base_version: int
    base_digest: str
    version: int
    digest: str
    tail: bytes = b""
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    scalar_bytes: int = 0
    key_bytes: int = 0

    KINDS: ClassVar[tuple[str, ...]] = ("none", "tail", "full")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that travel."""
        found = {f"{_FULL}{name}": value for name, value in self.state.items()}
        if self.tail:
            found["tail"] = np.frombuffer(self.tail, dtype=np.uint8)
        return found

    def config(self) -> dict[str, Any]:
        """Return the settings that travel."""
        return {
            "sync": self.kind,
            "base-version": self.base_version,
            "base-digest": self.base_digest or "none",
            "version": self.version,
            "digest": self.digest,
        }

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        weights = sum(
            value.nbytes
            for name, value in self.state.items()
            if name.startswith(("weights.", "slot."))
        )
        return {"scalars": self.scalar_bytes, "keys": self.key_bytes, "weights": weights}

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the sync part of a request."""
        kind = reader.text("sync", cls.KINDS)
        tail = reader.array("tail", "uint8", ndim=1).tobytes() if kind == "tail" else b""
        return cls(
            kind=kind,  # type: ignore[arg-type]  # checked against KINDS
            base_version=reader.integer("base-version"),
            base_digest=reader.text("base-digest"),
            version=reader.integer("version"),
            digest=_hex(reader, "digest"),
            tail=tail,
            state=reader.group(_FULL, WEIGHT_DTYPES) if kind == "full" else {},
        )


def _hex(reader: Reader, name: str) -> str:
    # Digests name files on the client.
    value = reader.text(name, longest=128)
    if set(value) - set("0123456789abcdef"):
        raise reader.fail(f"has {name}={value[:80]!r}, expected hexadecimal digits")
    return value


@dataclass(frozen=True)
class Setup:
    """What every request says of the run.

    Attributes
    ----------
    seed : int
        The run's seed.
    partition : str
        The partitioning of the data as JSON, "local" for clients with data of their own.
    threads : int
        Threads that torch uses on the client.
    """

    seed: int
    partition: str
    threads: int = 1

    def config(self) -> dict[str, Any]:
        """Return the settings that travel."""
        return {"seed": self.seed, "partition": self.partition, "threads": self.threads}

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the setup part of a request."""
        return cls(
            seed=reader.integer("seed"),
            partition=reader.text("partition"),
            threads=reader.integer("threads", low=1, high=1024),
        )


@dataclass(frozen=True)
class JoinRequest:
    """Ask a node who it is and how much data it holds.

    Attributes
    ----------
    setup : Setup
        The run.
    base : str
        Digest in hex of what the server has frozen of what clients hold, empty for nothing; a node
        with another cannot take part.
    whole : bool
        Whether clients hold the whole model instead of the client half.
    """

    TYPE: ClassVar[str] = "query.join"

    setup: Setup
    base: str = ""
    whole: bool = False

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        base = {"base": self.base, "whole": self.whole} if self.base else {}
        return pack({}, {**self.setup.config(), **base}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        setup = Setup.read(reader)
        frozen = reader.given("base")
        request = cls(
            setup,
            base=_hex(reader, "base") if frozen else "",
            whole=reader.boolean("whole") if frozen else False,
        )
        reader.done()
        return request


@dataclass(frozen=True)
class JoinReply:
    """Who a node is: its partition (-1 with data of its own), its sample count, or a problem."""

    partition: int
    samples: int
    problem: str = ""

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config = {"partition-id": self.partition, "problem": self.problem or "none"}
        return pack({}, config, {"num-examples": self.samples})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "join reply")
        problem = reader.text("problem")
        reply = cls(
            partition=reader.integer("partition-id", low=-1),
            samples=reader.metric("num-examples"),
            problem="" if problem == "none" else problem,
        )
        reader.done()
        return reply


@dataclass(frozen=True)
class StaleReply:
    """A client that does not stand where the sync began: it names where it stands.

    Attributes
    ----------
    version : int
        The client's version, -1 for none.
    digest : str
        The digest of that version in hex.
    """

    version: int
    digest: str

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        config = {"status": "stale", "version": self.version, "digest": self.digest or "none"}
        return pack({}, config, {"num-examples": 0})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {}

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived reply."""
        reader = Reader(content, "stale reply")
        reader.text("status", ("stale",))
        version, digest = reader.integer("version", low=-1), reader.text("digest")
        reader.done()
        return cls(version, "" if digest == "none" else digest)


def is_stale(content: RecordDict) -> bool:
    """Tell whether an arrived reply says that the client must be synced anew."""
    config = content.config_records.get("config")
    return config is not None and config.get("status") == "stale"


def check_batch(reader: Reader, z: np.ndarray, y: np.ndarray, sizes: np.ndarray) -> None:
    """Refuse smashed data, labels and mini-batch sizes that do not fit one another."""
    count = z.shape[0] if z.ndim else 0
    if z.ndim < 2 or y.ndim < 1 or y.shape[0] != count or not (z.size and y.size):
        raise reader.fail(f"has smashed data of shape {z.shape} with labels of shape {y.shape}")
    # Each size is bounded before they are summed: a sum of int64 wraps around.
    legal = sizes.size <= count and ((sizes >= 1) & (sizes <= count)).all()
    if not legal or int(sizes.sum()) != count:
        raise reader.fail(f"has mini-batches of {sizes[:8].tolist()} for {count} samples")
