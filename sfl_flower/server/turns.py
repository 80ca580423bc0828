"""When the server half steps, in which order it takes the clients' batches, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from sfl_flower.data import generator, server_seed
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.options import Choice, Natural, Range
from sfl_flower.server.label_privacy import LabelSettings
from sfl_flower.server.roster import Member
from sfl_flower.server.sequential import learn_in_turn
from sfl_flower.server.tally import Tally
from sfl_flower.server.trainer import Batch, Trainer

__all__ = ["SERVER_STEPS", "ServerPaceSettings", "later_passes", "turns"]

SERVER_STEPS = ("round", "batch")
"""One server step a round with the mean gradient, or one after every mini-batch."""


@dataclass(frozen=True)
class ServerPaceSettings(LabelSettings):
    """How often the server half steps on the smashed data of a round.

    Attributes
    ----------
    server_steps : {"round", "batch"}
        One server step a round with the mean gradient (the paper), or one after every mini-batch,
        clients in the order of SplitFed V2.
    server_passes : int
        How often the server half goes over the mini-batches of a round, stepping after each; λ is
        of the first pass, and the others have orders of their own. For `server_steps=batch`.
    server_batch : int
        Most samples that the server half runs at one time, mini-batches of several clients
        together; 0 is one mini-batch after another. For `server_steps=round`.
    """

    server_steps: Annotated[str, Choice(SERVER_STEPS)] = "batch"
    server_passes: Annotated[int, Range(1, 1000)] = 1
    server_batch: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server_passes > 1 and self.server_steps != "batch":
            raise ConfigError(
                f"server_passes is {self.server_passes} with server_steps={self.server_steps}: a "
                "mean gradient is taken once; use server_steps=batch, or server_passes=1."
            )
        if self.server_batch and self.server_steps != "round":
            raise ConfigError(
                f"server_batch is {self.server_batch} with server_steps={self.server_steps}: the "
                "server half steps after each mini-batch, so the next one meets other weights and "
                "none can run together; use server_steps=round, or server_batch=0."
            )

    @property
    def server_pace(self) -> str:
        """When the server half steps."""
        return self.server_steps

    @property
    def control(self) -> dict[str, Any]:
        """Options of the frozen client that has the pace, batches and mode of this method."""
        return {**super().control, "server_passes": self.server_passes}


def turns(seed: int, round: int, members: Sequence[Member], again: int = 0) -> list[Member]:
    """Return clients in an order drawn from the run's seed, a new one each round and pass.

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
    again : int
        Which pass over the round's mini-batches: 0 is the first.
    """
    drawn = generator("splitfed order", server_seed(seed), round, again)
    known = sorted(members)
    return [known[index] for index in drawn.permutation(len(known)).tolist()]


def later_passes(
    trainer: Trainer,
    batches: Mapping[Member, Sequence[Batch]],
    seed: int,
    round: int,
    passes: int,
    tally: Tally,
) -> int:
    """Let the server half go over the mini-batches of a round again, stepping after each.

    Parameters
    ----------
    trainer : Trainer
        The server half, after the first pass.
    batches : Mapping of Member to sequence of Batch
        Each client's mini-batches that were used in the first pass.
    seed, round : int
        The run's seed and the round, of the orders.
    passes : int
        All passes, the first among them.
    tally : Tally
        Is told of mini-batches that can no longer be used: their client's turn is left out.

    Returns
    -------
    int
        The steps taken.
    """
    taken = 0
    for again in range(1, passes):
        for member in turns(seed, round, list(batches), again):
            own = batches[member]
            # Counted on, so that dropout has masks of its own in each pass.
            named = [
                (z, y, (round, client, step + again * len(own))) for z, y, (_, client, step) in own
            ]
            try:
                taken += len(learn_in_turn([trainer], named))
            except WireError as error:
                tally.note(f"Pass {again + 1} leaves client {member.partition} out: {error}")
    return taken
