"""Labels as the smallest integers that hold them all."""

from __future__ import annotations

import numpy as np

__all__ = ["INTEGERS", "smallest"]

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")
"""Dtypes of labels on the wire; the receiver has them as int64."""


def smallest(labels: np.ndarray) -> np.ndarray:
    """Return int64 labels of any shape in the smallest dtype of `INTEGERS`."""
    if not labels.size:
        return labels.astype(np.uint8)
    low, high = int(labels.min()), int(labels.max())
    for name in INTEGERS:
        held = np.iinfo(name)
        if held.min <= low and high <= held.max:
            break
    return labels.astype(name)
