"""Randomised response: labels of which each may be another, whoever looks at them, and how often.

A label of K classes stays with probability ``e^ε / (e^ε + K - 1)`` and is each other class with the
same (Warner 1965; for more than two classes Kairouz et al., arXiv 1602.07387).  No label makes an
answer more than e^ε times as likely as another, and all that follows from the answers tells no more
(label differential privacy, Ghazi et al., arXiv 2102.06062).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["kept_share", "randomised"]


def kept_share(epsilon: float, classes: int) -> float:
    """Return with which probability a label stays as it is.

    Parameters
    ----------
    epsilon : float
        ε, above 0.
    classes : int
        K, at least 1.
    """
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


def randomised(
    y: NDArray[np.int64],
    epsilon: float,
    classes: int,
    generator: np.random.Generator,
    ignored: int | None = None,
) -> NDArray[np.int64]:
    """Return labels as they may be told.

    Parameters
    ----------
    y : numpy.ndarray
        Labels, int64, any shape.
    epsilon, classes : float, int
        As for `kept_share`.
    generator : numpy.random.Generator
        Known to nobody to whom the labels are told. The same one gives the same answers.
    ignored : int, optional
        The label that is no class; it stays.
    """
    draws = generator.random(y.shape)
    others = generator.integers(1, max(classes, 2), y.shape)
    told = np.where(draws < kept_share(epsilon, classes), y, (y + others) % classes)
    return told if ignored is None else np.where(y == ignored, y, told)
