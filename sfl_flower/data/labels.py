"""Labels: one a sample, or one a position, of which some do not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sfl_flower.errors import DataError

__all__ = ["row_labels", "wrong_label"]


def wrong_label(y: npt.NDArray[np.int64], classes: int, ignore: int | None) -> str | None:
    """Return what is wrong with labels that arrived, None if nothing is.

    Parameters
    ----------
    y : ndarray of int64
        Labels [n, ...].
    classes : int
        They lie in [0, classes),
    ignore : int, optional
        or are this one, which does not count; at least one of a sample's labels counts.
    """
    if ignore is not None:
        kept = y != ignore
        if not kept.reshape(len(y), -1).any(axis=1).all():
            return f"a sample has no label: all are {ignore}, which does not count."
        y = y[kept]
    if y.min() < 0 or y.max() >= classes:
        bad = int(y.min() if y.min() < 0 else y.max())
        return f"a label is {bad}, the task has classes 0 to {classes - 1}."
    return None


def row_labels(
    y: npt.NDArray[np.int64], ignore: int | None, by_class: bool
) -> npt.NDArray[np.int64]:
    """Return one label a row, to divide a training set by.

    Parameters
    ----------
    y : ndarray of int64
        Labels [N], or [N, T] where those that are `ignore` do not count.
    ignore : int, optional
        That label.
    by_class : bool
        Whether the division asks for classes; if not, rows with many labels count as one class.

    Raises
    ------
    DataError
        It does, and a row has more than one label.
    """
    if y.ndim == 1:
        return y
    kept: npt.NDArray[Any] = np.ones(y.shape, bool) if ignore is None else y != ignore
    flat, kept = y.reshape(len(y), -1), kept.reshape(len(y), -1)
    if (kept.sum(axis=1) == 1).all():
        labels: npt.NDArray[np.int64] = flat[kept]
        return labels
    if by_class:
        raise DataError(
            "The training set cannot be divided by class: a row has many labels, one a position; "
            "use partition iid, linear, square or exponential."
        )
    return np.zeros(len(y), np.int64)
