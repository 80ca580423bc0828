"""When the server half steps, and in which order it takes the clients' batches."""

from __future__ import annotations

from collections.abc import Sequence

from sfl_flower.data import generator, server_seed
from sfl_flower.server.roster import Member

__all__ = ["SERVER_STEPS", "turns"]

SERVER_STEPS = ("round", "batch")
"""One server step a round with the mean gradient, or one after every mini-batch."""


def turns(seed: int, round: int, members: Sequence[Member]) -> list[Member]:
    """Return clients in an order drawn from the run's seed, a new one each round.

    Where the server steps after every batch, the first batches of a round meet another server half
    than the last ones do; a drawn order favours no client. Every method that asks here takes the
    same clients in the same order.

    Parameters
    ----------
    seed : int
        The run's seed.
    round : int
        The round.
    members : sequence of Member
        The clients; the order in which they are given does not matter.
    """
    drawn = generator("splitfed order", server_seed(seed), round, 0)
    known = sorted(members)
    return [known[index] for index in drawn.permutation(len(known)).tolist()]
