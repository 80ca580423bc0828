"""What a format of numbers brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np

from sfl_flower.errors import WireError

__all__ = ["NAMES", "Format", "check_finite"]

NAMES = {"smashed": "smashed data", "gradients": "cut gradients"}
"""What errors call the two."""


def check_finite(values: np.ndarray, what: str) -> None:
    """Raise `WireError` if a value of smashed data or of cut gradients is not finite."""
    if not np.isfinite(values).all():
        raise WireError(
            f"The {NAMES[what]} hold a value that is not finite, which only float32 can say; lower "
            "the learning rates."
        )


class Format(Protocol):
    """What float32 numbers become on the wire.

    Attributes
    ----------
    name : str
        What the options `smashed` and `gradients` call it.
    parts : Mapping[str, str]
        Dtype of each array, by what follows the name of the whole; "" for the numbers themselves.
    packed : bool
        Whether the numbers' array has fewer elements than there are numbers.
    """

    name: ClassVar[str]
    parts: ClassVar[Mapping[str, str]]
    packed: ClassVar[bool]

    def encode(self, rows: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return an array for each of `parts` of float32 [n, m]; not packed, "" is [n, m] too.

        Raises
        ------
        WireError
            If a value cannot be written so.
        """

    def decode(self, parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
        """Return float32 [count, size]; the arrays have the right dtypes, and any shape.

        Raises
        ------
        WireError
            If they do not fit one another.
        """
