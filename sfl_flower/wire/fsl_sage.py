"""The messages of FSL-SAGE, and the digest that names an auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, ClassVar

import numpy as np

from sfl_flower.wire.common import StaleReply
from sfl_flower.wire.downlink import WEIGHTS, change_bytes
from sfl_flower.wire.fields import hexadecimal, octets, text
from sfl_flower.wire.local import LocalRequest
from sfl_flower.wire.message import Asked
from sfl_flower.wire.reader import Reader

__all__ = [
    "FSLSAGERequest",
    "FSLSAGEStaleReply",
    "FSLSAGEUploadRequest",
    "FSLSAGEWarmUpRequest",
    "head_digest",
]


@dataclass(frozen=True)
class FSLSAGEUploadRequest(LocalRequest):
    """Ask for the smashed data of step 0 alone, ahead of the round's steps.

    It brings the weights of the client half, which the client keeps for the request that follows.
    The reply is a `ForwardReply`.
    """

    ACTION: ClassVar[str] = "upload"

    def asks(self) -> Asked:
        """Ask for one mini-batch."""
        return Asked(batches=1)


@dataclass(frozen=True)
class FSLSAGERequest(LocalRequest):
    """Ask for local steps along the cut gradients that the client's head estimates.

    Weights that were sent ahead, and a head that the client should hold, are left out; a client
    without them answers with an `FSLSAGEStaleReply`.  Each client has a head of its own, so
    `holds`, `base` and `changes` are of the client half alone.

    Attributes
    ----------
    digest : str
        Names the head to use, in hex.
    ahead : bool
        Whether step 0's smashed data were sent ahead, and are not to be sent again.
    head_base : str or None
        With a head that comes as differences, names what the client must hold of it before; None
        where it came whole.
    head_changes : bytes or None
        What changed of the head in between; None for nothing.
    """

    ACTION: ClassVar[str] = "local"

    digest: Annotated[str, text(longest=64, empty="none")] = ""
    ahead: bool = False
    head_base: Annotated[str, hexadecimal()] | None = None
    head_changes: Annotated[bytes, octets(change_bytes)] | None = None

    @property
    def followed(self) -> tuple[str, ...]:
        """How that comes down which `holds` names."""
        return (self.downlink,)

    def check(self, reader: Reader) -> None:
        """Refuse also changes of a head since nothing, or of one that comes whole."""
        super().check(reader)
        if self.head_changes is not None and self.head_base is None:
            raise reader.fail("brings changes of a head without saying since when")
        if self.head_base and self.head_downlink == WEIGHTS:
            raise reader.fail("says since when a head changed that comes whole")

    def asks(self) -> Asked:
        """Ask for every k-th step's smashed data, step 0's left out where they came ahead."""
        asked = super().asks()
        return asked._replace(batches=(asked.batches or 0) - int(self.ahead))


@dataclass(frozen=True)
class FSLSAGEWarmUpRequest(LocalRequest):
    """Ask for local steps on client half and head as in CSE-FSL; the reply brings both."""

    ACTION: ClassVar[str] = "warm_up"


@dataclass(frozen=True)
class FSLSAGEStaleReply(StaleReply):
    """A client that lacks what its steps begin with.

    Attributes
    ----------
    head : str
        Names the head that it holds, in hex, as `digest` of a request does; "" for none.
    """

    head: Annotated[str, hexadecimal()] = ""


def head_digest(packed: Mapping[str, np.ndarray]) -> str:
    """Return the blake2b digest, 32 hex digits, of a packed head."""
    digest = blake2b(digest_size=16)
    for name in sorted(packed):
        digest.update(f"{name}:{packed[name].size};".encode())
        digest.update(np.ascontiguousarray(packed[name]).tobytes())
    return digest.hexdigest()
