"""A share of the training set that nobody trains on, to choose settings by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sfl_flower.data.seeding import generator
from sfl_flower.errors import DataError

__all__ = ["LARGEST", "hold_back"]

LARGEST = 0.5
"""The largest share that may be held back."""


def hold_back(
    labels: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows that are trained on, and those that are held back.

    The second are drawn class by class: every class has its share of them, to within one row, and
    one row of every class is left to train on.

    Parameters
    ----------
    labels : ndarray of int64, shape [N]
        One label a row.
    share : float
        Held back, 0 < share <= `LARGEST`; ``round(share * N)`` rows.
    seed : int
        The division's seed, which decides the rows.

    Returns
    -------
    trained, held : ndarray of int64
        Ascending, disjoint, together all rows.

    Raises
    ------
    DataError
        The share comes to no row.
    """
    classes, counts = np.unique(labels, return_counts=True)
    wanted = share * counts
    taken = np.floor(wanted).astype(np.int64)
    left = round(share * len(labels)) - int(taken.sum())
    # The rest goes where the rounding took most, the lower class where it took the same.
    for index in np.argsort(taken - wanted, kind="stable")[: max(0, left)]:
        taken[index] = min(taken[index] + 1, counts[index] - 1)
    if not taken.sum():
        raise DataError(
            f"validation is {share:g}, which holds back none of {len(labels)} training samples; "
            f"set it higher, up to {LARGEST:g}, or to 0 for no validation set."
        )
    parts = [
        generator("validation", seed, int(label)).permutation(np.flatnonzero(labels == label))[:n]
        for label, n in zip(classes, taken, strict=True)
    ]
    held = np.sort(np.concatenate(parts))
    trained = np.setdiff1d(np.arange(len(labels)), held, assume_unique=True)
    return trained, held
