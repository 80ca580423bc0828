"""Means over clients: what each counts, and the mean of their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["client_weight", "mean_state"]


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


def mean_state(states: Iterable[Mapping[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Return the weighted mean of state dicts, summed in float64 in the order given.

    Parameters
    ----------
    states : iterable of state dicts
        Equal names and shapes.
    weights : list of float
        One per state; divided by their sum.

    Returns
    -------
    dict[str, Tensor]
        Own dtypes; whole numbers (batch counters) are rounded.
    """
    total = sum(weights)
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for state, weight in zip(states, weights, strict=True):
        for name, value in state.items():
            dtypes[name] = value.dtype
            part = value.to(torch.float64) * (weight / total)
            sums[name] = part if name not in sums else sums[name] + part
    return {
        name: (value if dtypes[name].is_floating_point else value.round()).to(dtypes[name])
        for name, value in sums.items()
    }
