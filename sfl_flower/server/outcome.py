"""What a method reports of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a method reports of a round.

    Attributes
    ----------
    losses : list of float
        Mean losses of the mini-batches the server used.
    samples : int
        Samples of those mini-batches.
    extra : Mapping[str, float]
        Further numbers of the method.
    """

    losses: list[float]
    samples: int
    extra: Mapping[str, float]
