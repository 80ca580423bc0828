"""What directions are multiplied by in a step: the scalars of a mini-batch over ``P · unit``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfl_flower.zo.clipping import clip_scalars

__all__ = ["step_coefficients"]


def step_coefficients(
    scalars: NDArray[np.floating], unit: float, clip_norm: float = 0.0
) -> NDArray[np.float32]:
    """Return the factors of the directions of one step, clipped ``v_p / (P · unit)``.

    The client and whoever rebuilds its step compute them to the same bits.

    Parameters
    ----------
    scalars : numpy.ndarray
        v, shape [P]; rounded to float32, as they travel.
    unit : float
        What a scalar is divided by to be a derivative: `Probing.unit`, or 2 μ for a difference
        between θ + μu and θ - μu that was not halved.
    clip_norm : float
        See `clip_scalars`; 0: no clipping.

    Returns
    -------
    numpy.ndarray
        float32, shape [P], rounded once. Not checked for finiteness.
    """
    with np.errstate(over="ignore"):
        clipped = clip_scalars(scalars.astype(np.float32), unit, clip_norm)
        factors: NDArray[np.float32] = (clipped / (scalars.size * unit)).astype(np.float32)
    return factors
