"""Bringing together what clients send, their scalars or their weights: one aggregator a run.

An aggregator is a class and a line in `AGGREGATORS`; the option `aggregator` chooses one by name,
with a number where it takes one, and mixing neighbours before it where wanted: ``median``,
``krum:2``, ``nnm:2+trimmed:0.2``.  How much a client counts, `client_weight`, is the option `mean`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.server.mean import Mean
from sfl_flower.server.robust import Clip, Krum, Median, MultiKrum, Trimmed

__all__ = [
    "AGGREGATORS",
    "SAYS",
    "Aggregator",
    "check_aggregator",
    "client_weight",
    "find_aggregator",
]


class Aggregator(Protocol):
    """One number out of each client's; the same for every number, so it knows no method."""

    @property
    def linear(self) -> bool:
        """Whether it is a weighted sum, so that clients may each add to it on their own."""

    @property
    def alone(self) -> bool:
        """Whether `apart` can be asked of it."""

    @property
    def fewest(self) -> int:
        """Clients of a round that it needs."""

    def scalars(
        self, scalars: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Bring scalars together.

        Parameters
        ----------
        scalars : numpy.ndarray
            Every client's, float64, shape [clients, steps, probes]; along the same directions.
        shares : numpy.ndarray
            What each client counts, float64, shape [clients].  They need not sum to 1: a method
            folds 1/(P μ) into them.

        Returns
        -------
        numpy.ndarray
            float64, shape [steps, probes]; the sum of ``share * scalar`` where clients agree.
        """

    def apart(self, scalars: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return scalars as they count where no two clients share a direction; same shape."""

    def states(
        self, states: Iterable[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> dict[str, Tensor]:
        """Bring state dicts together.

        Parameters
        ----------
        states : iterable of state dicts
            Equal names and shapes, at least one.
        weights : sequence of float
            What each client counts; only their ratios matter.

        Returns
        -------
        dict[str, Tensor]
            Own dtypes; whole numbers (batch counters) are rounded.
        """


AGGREGATORS: Mapping[str, Callable[..., Aggregator]] = {
    "mean": Mean,
    "median": Median,
    "trimmed": Trimmed,
    "krum": Krum,
    "multikrum": MultiKrum,
    "clip": Clip,
}
"""The aggregators by name; called with the number behind the name, of those that have one."""
RANGES: Mapping[str, tuple[float, float]] = {"trimmed": (0.001, 0.499), "clip": (0.1, 100)}
"""The range of the number behind a name."""
COUNTS = ("krum", "multikrum")
"""The names behind which a whole number stands, at least 1: the clients that may be false."""
SAYS = (
    "mean, median, trimmed:S (S of 0.001 to 0.499), krum:F or multikrum:F (F from 1) or clip:C (C "
    "of 0.1 to 100), with nnm:F+ before any of them but mean where wanted, as in nnm:2+median"
)
"""What a name looks like."""
_NAME = re.compile(
    rf"(?:nnm:(?P<mixed>[1-9][0-9]{{0,5}})\+)?(?P<rule>{'|'.join(AGGREGATORS)})"
    r"(?::(?P<number>[0-9]{0,6}\.?[0-9]{1,6}))?"
)


def find_aggregator(name: str) -> Aggregator:
    """Return the aggregator of a name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    found = _NAME.fullmatch(name)
    if found is not None and (found["rule"] != "mean" or not found["mixed"]):
        rule, number = found["rule"], found["number"]
        mixed = {"mixed": int(found["mixed"])} if found["mixed"] else {}
        if number is None and rule not in (*RANGES, *COUNTS):
            return AGGREGATORS[rule](**mixed)
        if number is not None and rule in RANGES:
            low, high = RANGES[rule]
            if low <= float(number) <= high:
                return AGGREGATORS[rule](float(number), **mixed)
        if number is not None and rule in COUNTS and number.isdecimal() and int(number):
            return AGGREGATORS[rule](int(number), **mixed)
    raise ConfigError(f"aggregator is '{name}'; it must be {SAYS}.")


def check_aggregator(config: RunConfig, own_directions: bool = False) -> None:
    """Refuse an aggregator that does not go with the rest of a run.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    own_directions : bool
        Whether each client's scalars are along directions of its own.

    Raises
    ------
    ConfigError
        If there is none of this name, or only a weighted mean will do, or a round has too few
        clients for it.
    """
    name = config.aggregator
    aggregator = find_aggregator(name)
    if aggregator.linear:
        return
    if own_directions and not aggregator.alone:
        raise ConfigError(
            f"aggregator={name} compares what clients found along the same directions, but with "
            "directions=own no two clients share one; set directions=shared, or aggregator=mean or "
            "clip:C, which takes each client for itself."
        )
    if config.mean != "uniform":
        raise ConfigError(
            f"aggregator={name} counts every client the same, so mean={config.mean} has no "
            "meaning with it; set mean=uniform or aggregator=mean."
        )
    if config.cohort < aggregator.fewest:
        raise ConfigError(
            f"aggregator={name} needs at least {aggregator.fewest} clients in a round, and this "
            f"run has {config.cohort}; set clients or sampled higher, or another aggregator."
        )


def client_weight(mean: str, samples: int) -> float:
    """Return what a client counts in a mean, before it is divided by the sum over clients.

    Parameters
    ----------
    mean : {"uniform", "samples"}
        Whether clients count the same or by samples.
    samples : int
        Samples the client ran in the round.
    """
    return 1.0 if mean == "uniform" else float(samples)
