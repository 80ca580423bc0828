"""Bringing together what clients send, their scalars or their weights: one aggregator a run.

An aggregator is a class in a file of its own and a line in `AGGREGATORS`; the option `aggregator`
chooses one by name.  How much a client counts, `client_weight`, is the option `mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.options import unknown
from sfl_flower.server.mean import Mean
from sfl_flower.server.median import Median

__all__ = ["AGGREGATORS", "Aggregator", "check_aggregator", "client_weight", "find_aggregator"]


class Aggregator(Protocol):
    """One number out of each client's; the same for every number, so it knows no method."""

    @property
    def linear(self) -> bool:
        """Whether it is a weighted sum, so that clients may each add to it on their own."""

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


AGGREGATORS: Mapping[str, Callable[[], Aggregator]] = {"mean": Mean, "median": Median}
"""The aggregators by name."""


def find_aggregator(name: str) -> Aggregator:
    """Return the aggregator of a name in `AGGREGATORS`.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in AGGREGATORS:
        raise unknown("aggregator", name, AGGREGATORS)
    return AGGREGATORS[name]()


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
        If there is none of this name, or only a weighted mean will do.
    """
    name = config.aggregator
    if find_aggregator(name).linear:
        return
    if own_directions:
        raise ConfigError(
            f"aggregator={name} compares what clients found along the same directions, but with "
            f"directions=own no two clients share one; set directions=shared or aggregator=mean."
        )
    if config.mean != "uniform":
        raise ConfigError(
            f"aggregator={name} counts every client the same, so mean={config.mean} has no "
            "meaning with it; set mean=uniform or aggregator=mean."
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
