"""The coordinate median over clients: less than half of them cannot take a number out of range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Median"]


class Median:
    """The median of every number on its own, clients counted the same; see `Aggregator`.

    Of an even number of clients it is the mean of the two in the middle.
    """

    linear = False

    def scalars(
        self, scalars: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return ``median_k(scalars_k) Σ_k shares_k``, shape [steps, probes]."""
        found: NDArray[np.float64] = np.median(scalars, axis=0) * shares.sum()
        return found

    def states(
        self, states: Iterable[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> dict[str, Tensor]:
        """Return the median of every tensor; all states are in memory at once."""
        held = list(states)
        return {name: _median([state[name] for state in held]) for name in held[0]}


def _median(values: list[Tensor]) -> Tensor:
    """Return the median of each element, in the dtype of the values."""
    ordered = torch.stack(values).sort(dim=0).values
    low, high = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
    if torch.equal(low, high):  # whatever the dtype, to the bit
        return low
    middle = (low.to(torch.float64) + high.to(torch.float64)) / 2
    return (middle if low.is_floating_point() else middle.round()).to(low.dtype)
