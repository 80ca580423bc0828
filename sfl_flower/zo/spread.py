"""Steps of one size: scalars over their own spread (FZOO, arXiv 2506.09034)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import ConfigError

__all__ = ["SCALES", "spread_scalars"]

SCALES: tuple[str, ...] = ("none", "spread")
"""What scalars of a mini-batch may be divided by, beside their unit."""


def spread_scalars(scalars: NDArray[np.floating], unit: float) -> NDArray[np.float64]:
    """Scale the scalars of one mini-batch so that, over their unit, their spread is 1.

    The spread is the sample standard deviation of the P scalars, ``σ² = Σ (v_p - v̄)² / (P - 1)``:
    that of the P losses of FZOO, since the anchor's loss is in each scalar alike.  Along directions
    with E[u uᵀ] = I it is about ``unit · ‖∇L‖``, so a step along ``1/P Σ (v_p / σ) u_p`` has the
    size of a step with a normalised gradient, whatever μ and the loss.

    Parameters
    ----------
    scalars : numpy.ndarray
        v of one mini-batch of one client, shape [P], P ≥ 2.
    unit : float
        What a scalar is divided by to be a derivative (`Probing.unit`).

    Returns
    -------
    numpy.ndarray
        ``v · unit / σ``, float64, shape [P].  All 0 where the scalars are all the same: nothing
        tells how far to go.

    Raises
    ------
    ConfigError
        If there is one scalar alone.
    """
    if scalars.size < 2:
        raise ConfigError("One scalar has no spread; scale=spread needs probes of at least 2.")
    found = scalars.astype(np.float64)
    # Exact sums: the order of additions differs between processors.
    mean = math.fsum(found.tolist()) / found.size
    apart = found - mean
    spread = math.sqrt(math.fsum((apart * apart).tolist()) / (found.size - 1))
    return found * (unit / spread) if spread > 0.0 else np.zeros_like(found)
