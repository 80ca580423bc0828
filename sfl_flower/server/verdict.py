"""What an aggregator made of each client's numbers, and how a round is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfl_flower.server.tally import Tally

__all__ = ["CLIPPED", "OUTLYING", "Verdict", "middle", "outlying", "places", "tell"]

CLIPPED, OUTLYING = "clipped", "outlying"
"""What a round's record calls answers that were drawn in, and those far from what came of all."""
FAR = 3.0
"""Medians of all distances beyond which an answer is outlying."""
FEWEST = 3
"""Clients without which none is far from the others."""


@dataclass(frozen=True)
class Verdict:
    """What an aggregator made of each client's numbers, by their places in the order given.

    Attributes
    ----------
    outlying, clipped : tuple of int
        Those that are far from what came of all, and those that counted less than others.
    note : str
        What a person should know, empty for nothing.
    """

    outlying: tuple[int, ...] = ()
    clipped: tuple[int, ...] = ()
    note: str = ""


def middle(values: Tensor) -> Tensor:
    """Return the median over the first dimension; of an even number, the mean of two."""
    ordered = values.sort(dim=0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def places(chosen: Tensor) -> tuple[int, ...]:
    """Return where a vector of booleans is true."""
    return tuple(torch.nonzero(chosen).ravel().tolist())


def outlying(squares: Tensor) -> tuple[int, ...]:
    """Return the places of clients that are far from what came of all.

    Parameters
    ----------
    squares : Tensor
        Squared distances, float64, shape [clients].
    """
    if len(squares) < FEWEST:
        return ()
    return places(squares.sqrt() > FAR * middle(squares.sqrt()))


def tell(tally: Tally, aggregator: object, clients: Sequence[int]) -> None:
    """Tell a round what its aggregator made of the clients at the last call.

    Parameters
    ----------
    tally : Tally
        The round.
    aggregator : Aggregator
        One without a `verdict`, as the mean, says nothing.
    clients : sequence of int
        The clients' partitions, in the order in which it was given their numbers.
    """
    verdict = getattr(aggregator, "verdict", None)
    if not isinstance(verdict, Verdict):
        return
    for what, found in ((OUTLYING, verdict.outlying), (CLIPPED, verdict.clipped)):
        for place in found:
            tally.mark(what, clients[place])
    if verdict.note and verdict.note not in tally.notes:
        tally.note(verdict.note)
