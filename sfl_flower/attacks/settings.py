"""How hard an attacker tries, and on how many samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfl_flower.options import Choice, Count, Natural, Range, Rate, check_options

__all__ = ["AttackSettings"]


@dataclass(frozen=True)
class AttackSettings:
    """Settings that every attack shares.

    Attributes
    ----------
    seed : int
        Samples, networks and noise all follow from it.
    victims : int
        Test samples that are attacked. Nothing is fitted to their inputs or labels.
    auxiliary : int
        Training samples that the attacker has, with their labels; no client holds them.
    observed : int
        Other training samples of which the attacker sees smashed data and nothing else.
    epochs : int
        Passes of the attacker's networks over the auxiliary samples.
    known : int
        Auxiliary samples a class whose label is known where labels are inferred.
    sightings : int
        How often the server gets smashed data of the same samples, with noise drawn anew, as it
        does once an epoch; it averages them.
    clients, rounds, batch, probes : int
        Of the runs that are hijacked: clients, rounds, samples of a mini-batch, and P of HO-SFL.
    rate : float
        Learning rate of the clients in them.
    strength : float
        The mean norm that a hijacking server gives the gradient of a sample's loss, at first; it
        falls to 0 over the rounds. 0 moves no weight of the clients (running statistics of
        BatchNorm move with the samples).
    pilot : {"fresh", "client"}
        What the hijacking server begins its pilot with: weights of its own, or the client half's,
        which it knows, so that clients have a shorter way to go.
    threads : int
        Of torch; figures may differ in their last digits with another number.

    Raises
    ------
    ConfigError
        If one is out of its range.
    """

    seed: Natural = 0
    victims: Annotated[int, Range(2, 100_000)] = 64
    auxiliary: Annotated[int, Range(10, 1_000_000)] = 600
    observed: Annotated[int, Range(10, 1_000_000)] = 600
    epochs: Count = 40
    known: Count = 5
    sightings: Count = 1
    clients: Count = 4
    rounds: Count = 100
    batch: Annotated[int, Range(2, 4096)] = 32
    probes: Annotated[int, Range(1, 4096)] = 16
    rate: Rate = 0.05
    strength: Annotated[float, Range(0, 1e6)] = 1.0
    pilot: Annotated[str, Choice(("fresh", "client"))] = "fresh"
    threads: Count = 1

    def __post_init__(self) -> None:
        check_options(self)
