"""How many rounds a method trains to see a given number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl_flower.config import RunConfig, Settings
from sfl_flower.data import client_samples
from sfl_flower.errors import ConfigError
from sfl_flower.server.roster import draw_cohort

__all__ = ["LIMIT", "Budget", "fit"]

LIMIT = 0.02
"""How far apart the samples of two rows may be, as a share."""


@dataclass(frozen=True)
class Budget:
    """A number of rounds and the training samples they come to over all clients."""

    rounds: int
    samples: int


def fit(samples: int, held: Sequence[int], config: RunConfig, settings: Settings) -> Budget:
    """Return the rounds whose samples come nearest to a number.

    The clients of a round are a pure function of the seed, so the count is exact as long as all
    of them answer.

    Parameters
    ----------
    samples : int
        Training samples wanted, over all clients.
    held : sequence of int
        Training samples of each client.
    config : RunConfig
        Seed, cohort and batch size.
    settings : Settings
        The method's, which say how many mini-batches a round has.

    Raises
    ------
    ConfigError
        If it is less than one round.
    """
    each = [
        client_samples(n, config.batch_size, settings.batches(n, config.batch_size)) for n in held
    ]
    total = last = rounds = 0
    while total < samples:
        rounds, last = rounds + 1, total
        total += sum(each[i] for i in draw_cohort(config.seed, rounds, len(each), config.cohort))
    if rounds <= 1:
        if total > samples * (1 + LIMIT):
            raise ConfigError(
                f"samples is {samples}, but one round of {config.method} is {total} samples over "
                f"{config.cohort} clients; it must be at least {total}."
            )
        return Budget(1, total)
    if samples - last < total - samples:
        return Budget(rounds - 1, last)
    return Budget(rounds, total)
