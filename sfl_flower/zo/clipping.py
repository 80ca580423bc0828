"""Gradient clipping for estimates that exist as scalars only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["clip_scalars"]


def clip_scalars(scalars: NDArray[np.floating], unit: float, limit: float) -> NDArray[np.float64]:
    """Scale the scalars of one step so that the gradient they tell of is not above a norm.

    ``v_p / unit`` is ``<∇L, u_p>`` or nearly so, and E[u uᵀ] = I, so its root mean square estimates
    ‖∇L‖. Nothing else of the estimate has to be known, so who holds the scalars clips to
    the same bits as who made them.

    Parameters
    ----------
    scalars : NDArray
        v of one mini-batch, shape [P].
    unit : float
        What a scalar is divided by to be a derivative (`Probing.unit`): μ for differences.
    limit : float
        The largest norm; 0 leaves the scalars as they are.

    Returns
    -------
    NDArray[np.float64]
        Shape [P].
    """
    found = scalars.astype(np.float64)
    if limit <= 0:
        return found
    # An exact sum: the order of additions differs between processors.
    norm = math.sqrt(math.fsum((found * found).tolist()) / found.size) / unit
    return found * (limit / norm) if norm > limit else found
