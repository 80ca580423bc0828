"""What handling a message cost the client: peak of memory and floating point operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfl_flower.wire.fields import metric, text
from sfl_flower.wire.message import Part

__all__ = ["METERS", "NO_USAGE", "Meter", "Usage"]

METERS = ("none", "memory", "flops")
"""What a request may ask to be measured; one at a time, for a meter is seen by the other."""
Meter = Annotated[str, text(METERS)]


@dataclass(frozen=True)
class Usage(Part):
    """What a client measured while it handled one message.

    Attributes
    ----------
    peak_bytes : int
        Peak of what torch allocated above its level at entry, 0 where it was not asked for.
    flops : int
        Floating point operations of torch's matrix products and convolutions, a multiply-add
        counted as two, 0 where it was not asked for.
    """

    peak_bytes: Annotated[int, metric()] = 0
    flops: Annotated[int, metric()] = 0

    def beside(self, other: Usage) -> Usage:
        """Return what both cost, one after the other."""
        return Usage(max(self.peak_bytes, other.peak_bytes), self.flops + other.flops)


NO_USAGE = Usage()
