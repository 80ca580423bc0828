"""The weighted mean over clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Mean"]


class Mean:
    """The weighted mean, summed in float64 in the order given; see `Aggregator`."""

    linear = True
    alone = True
    fewest = 1

    def scalars(
        self, scalars: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return ``Σ_k shares_k scalars_k``, shape [steps, probes]."""
        total: NDArray[np.float64] = (scalars * shares[:, None, None]).sum(axis=0)
        return total

    def apart(self, scalars: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scalars as they are."""
        return scalars

    def states(
        self, states: Iterable[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> dict[str, Tensor]:
        """Return the weighted mean of every tensor; one state at a time is in memory."""
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
