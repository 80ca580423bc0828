"""What a method reports of a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sfl_flower.server.facts import Facts

__all__ = ["Outcome", "mean_dcor"]


def mean_dcor(told: Iterable[float | None]) -> float | None:
    """Return the mean of the distance correlations of clients; None where none says any."""
    found = [value for value in told if value is not None and value >= 0]
    return sum(found) / len(found) if found else None


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
    server_steps : int, optional
        Optimiser steps of the server half; left out, they follow from the method's pace.
    steps_again : int
        Those beyond, of later passes over the same mini-batches.
    """

    losses: list[float]
    samples: int
    extra: Mapping[str, float]
    server_steps: int | None = None
    steps_again: int = 0

    def counted(self, facts: Facts, pace: str) -> Outcome:
        """Return the outcome with the server half's steps among its numbers.

        Parameters
        ----------
        facts : Facts
            Of the method; where its server only averages, there are none.
        pace : {"round", "batch"}
            When the server half steps; with "batch", after every mini-batch that has a loss.
        """
        if facts.server == "averages":
            return self
        steps = self.server_steps
        if steps is None:
            steps = len(self.losses) if pace == "batch" else int(bool(self.losses))
        return replace(self, extra={**self.extra, "server_steps": steps + self.steps_again})
