"""The messages of secure sums: keys and shares beside a round's own messages, and then the opening.

What masks need travels with the two exchanges that a round of HO-SFL has anyway; a third one opens
the sum (`sfl_flower.privacy.secure_client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np

from sfl_flower.privacy.secure_circle import DEALT_BYTES, KEY_BYTES, MARK_BYTES
from sfl_flower.privacy.shares import SHARE_BYTES
from sfl_flower.wire.common import Setup
from sfl_flower.wire.fields import Samples, array, flag, number, octets, text, whole
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest, ProbeRequest
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.usage import NO_USAGE, Usage
from sfl_flower.zo import SCALES

__all__ = [
    "SecureForwardReply",
    "SecureForwardRequest",
    "SecureProbeReply",
    "SecureProbeRequest",
    "UnmaskReply",
    "UnmaskRequest",
    "bits_of",
    "from_bits",
]

_SECURE = octets(lambda data: {"secure": len(data)})
_LIMIT = number(0.0, 1e30).stands()

Octets = Annotated[bytes, _SECURE]
"""Bytes of secure sums."""
Rows = Annotated[np.ndarray, array("uint8", "secure", ndim=2)]
"""Keys or shares, one a row."""


def bits_of(flags: Sequence[bool]) -> bytes:
    """Return truth values as bits, the first the highest."""
    return np.packbits(np.array(flags, dtype=bool)).tobytes()


def from_bits(data: bytes, count: int) -> list[bool]:
    """Return the first so many of the truth values in some bytes, False where there are fewer."""
    found = np.unpackbits(np.frombuffer(data, np.uint8), count=count)
    return [bool(bit) for bit in found.tolist()]


def _wide(reader: Reader, rows: np.ndarray, width: int, what: str) -> None:
    if rows.shape[1] != width:
        raise reader.fail(f"has {what} of {rows.shape[1]} bytes, expected {width}")


@dataclass(frozen=True)
class SecureForwardRequest(ForwardRequest):
    """Ask for the anchor forward of a round, and for shares of what its scalars are masked with.

    Attributes
    ----------
    holds : bytes
        Mark of the public key that the server knows of the client.
    neighbours : numpy.ndarray
        Public keys of its neighbours in the circle, uint8 [k, KEY_BYTES].
    opens : int
        How many shares give a secret.
    """

    ACTION: ClassVar[str] = "secure_forward"
    ANSWER: ClassVar[str] = "secure forward reply"

    holds: Octets = field(kw_only=True)
    neighbours: Rows = field(kw_only=True)
    opens: Annotated[int, whole(low=2)] = field(kw_only=True)

    def check(self, reader: Reader) -> None:
        """Refuse keys of another size, and a threshold that half of the holders reach."""
        _wide(reader, self.neighbours, KEY_BYTES, "public keys")
        holders = len(self.neighbours) + 1
        if not holders < 2 * self.opens <= 2 * holders:
            raise reader.fail(f"has opens={self.opens} of {holders} holders, expected above half")


@dataclass(frozen=True)
class SecureForwardReply(ForwardReply):
    """Smashed data and labels, and shares; or a new key of a client that lost its own.

    Attributes
    ----------
    key : bytes or None
        The client's public key, where it is another than the server knows; it deals nothing then.
    mark, pairs : bytes or None
        As in `sfl_flower.privacy.secure_client.Dealt`.
    sent : numpy.ndarray or None
        Encrypted shares, uint8 [n, DEALT_BYTES].
    """

    WHAT: ClassVar[str] = "secure forward reply"

    key: Octets | None = field(kw_only=True, default=None)
    mark: Octets | None = field(kw_only=True, default=None)
    pairs: Octets | None = field(kw_only=True, default=None)
    sent: Rows | None = field(kw_only=True, default=None)

    def check(self, reader: Reader) -> None:
        """Refuse a new key beside shares, and what has not its size."""
        super().check(reader)
        if self.key is not None:
            if (
                len(self.key) != KEY_BYTES
                or {self.mark, self.pairs} != {None}
                or self.sent is not None
            ):
                raise reader.fail("has a new key beside shares, or one that is none")
            return
        if self.mark is None or self.pairs is None or self.sent is None:
            raise reader.fail("lacks shares")
        if len(self.mark) != MARK_BYTES:
            raise reader.fail(f"has a mark of {len(self.mark)} bytes, expected {MARK_BYTES}")
        _wide(reader, self.sent, DEALT_BYTES, "shares")


@dataclass(frozen=True)
class SecureProbeRequest(ProbeRequest):
    """Ask for the scalars of a round's probes under masks.

    Attributes
    ----------
    dealt : bytes
        A bit for each neighbour: whether it dealt shares in this round (`bits_of`).
    incoming : numpy.ndarray
        Their encrypted shares for this client, uint8 [n, DEALT_BYTES].
    bits : int
        A scalar is a multiple of 2^-bits.
    limit, clip_norm : float
        ``scalar_limit`` and ``clip_norm`` of the method, which the client itself keeps to.
    scale : str
        ``scale`` of the method, likewise.
    weighed : bool
        Whether a client counts as many times as it has samples.
    """

    ACTION: ClassVar[str] = "secure_probe"

    dealt: Octets = field(kw_only=True)
    incoming: Rows = field(kw_only=True)
    bits: Annotated[int, whole(high=64).stands()] = field(kw_only=True)
    limit: Annotated[float, _LIMIT] = field(kw_only=True)
    clip_norm: Annotated[float, _LIMIT] = field(kw_only=True)
    scale: Annotated[str, text(SCALES).stands()] = field(kw_only=True)
    weighed: Annotated[bool, flag().stands()] = field(kw_only=True)

    def asks(self) -> Asked:
        """Ask for no scalars: what comes is under masks."""
        return Asked()

    def check(self, reader: Reader) -> None:
        """Refuse shares of another size."""
        _wide(reader, self.incoming, DEALT_BYTES, "shares")


@dataclass(frozen=True)
class SecureProbeReply(Reply):
    """The scalars of a client's probes as whole numbers under masks.

    Attributes
    ----------
    numbers : numpy.ndarray
        uint64 [minibatches, probes]: multiples of the step and masks, added modulo 2^64.
    """

    WHAT: ClassVar[str] = "secure probe reply"

    round: int
    numbers: Annotated[np.ndarray, array("uint64", "scalars", ndim=2)]
    samples: Samples
    usage: Usage = NO_USAGE


@dataclass(frozen=True)
class UnmaskRequest(Request):
    """Ask for shares of what has to come off the sum.

    Attributes
    ----------
    arrived : bytes
        A bit for each neighbour: whether its numbers arrived (`bits_of`).
    """

    ACTION: ClassVar[str] = "unmask"

    round: int
    setup: Setup
    arrived: Octets


@dataclass(frozen=True)
class UnmaskReply(Reply):
    """Shares: of the client's own seed, then of each neighbour that dealt one of its two secrets.

    Attributes
    ----------
    shares : numpy.ndarray
        uint8 [1 + dealers, SHARE_BYTES].
    """

    WHAT: ClassVar[str] = "unmask reply"

    round: int
    shares: Rows

    def check(self, reader: Reader) -> None:
        """Refuse shares of another size."""
        _wide(reader, self.shares, SHARE_BYTES, "shares")
