"""What handling a message cost the client: peak of memory and floating point operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sfl_flower.wire.codec import Reader

__all__ = ["METERS", "NO_USAGE", "Usage"]

METERS = ("none", "memory", "flops")
"""What a request may ask to be measured; one at a time, for a meter is seen by the other."""


@dataclass(frozen=True)
class Usage:
    """What a client measured while it handled one message.

    Attributes
    ----------
    peak_bytes : int
        Peak of what torch allocated above its level at entry, 0 where it was not asked for.
    flops : int
        Floating point operations of torch's matrix products and convolutions, a multiply-add
        counted as two, 0 where it was not asked for.
    """

    peak_bytes: int = 0
    flops: int = 0

    def metrics(self) -> dict[str, int]:
        """Return the metrics that travel."""
        return {"peak-bytes": self.peak_bytes, "flops": self.flops}

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the usage part of a reply."""
        return cls(reader.metric("peak-bytes"), reader.metric("flops"))


NO_USAGE = Usage()
