"""Sums that no sample moves by more than a bound, and Gaussian noise on them.

The P scalars of a mini-batch are a sum over its samples, and each sample's part is known before it
is summed.  Scaled down to a norm as one vector of P numbers, a sample moves the P sums together by
no more than that norm, so noise is added once for all P: the aggregation of directions before
clipping of DP-AggZO (USENIX Security 2025), after DP-SGD (Abadi et al. 2016).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bounded_sum", "gaussian"]


def bounded_sum(terms: NDArray[np.floating], limit: float) -> NDArray[np.float64]:
    """Sum vectors, each scaled down to a Euclidean norm.

    Parameters
    ----------
    terms : numpy.ndarray
        The part of each sample, shape [n, D].  One with a number that is not finite counts as 0:
        otherwise a single sample would decide the sum.
    limit : float
        The largest norm of a part.

    Returns
    -------
    numpy.ndarray
        float64, shape [D].
    """
    found = np.asarray(terms, dtype=np.float64)
    found = np.where(np.isfinite(found).all(axis=1, keepdims=True), found, 0.0)
    # By the largest number first: squares of what is finite need not be.
    largest = np.abs(found).max(axis=1, initial=0.0, keepdims=True)
    scaled = found / np.where(largest > 0, largest, 1.0)
    norms = largest * np.linalg.norm(scaled, axis=1, keepdims=True)
    factors = np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit)
    total: NDArray[np.float64] = (found * factors).sum(axis=0)
    return total


def gaussian(
    values: NDArray[np.float64],
    deviation: float | NDArray[np.float64],
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Add independent Gaussian noise to each number.

    Parameters
    ----------
    values : numpy.ndarray
        Any shape.
    deviation : float or numpy.ndarray
        The standard deviation, of a shape that is broadcast to that of the values.
    generator : numpy.random.Generator
        What must not be known to whom the values are shown.
    """
    return values + deviation * generator.standard_normal(values.shape)
