"""What a way to send smashed data or cut gradients brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np

__all__ = ["Encoding"]


class Encoding(Protocol):
    """A way to send float32 arrays of the cut.

    Padding is left out before and put back after; whoever sent the values keeps them as they were.

    Attributes
    ----------
    name : str
        What the options `smashed` and `gradients` call it.
    parts : Mapping[str, str]
        Dtype of each array that it sends, by what follows the name of the whole on the wire, ""
        for nothing; all that arrives is held against this before `decode` sees it.
    """

    name: ClassVar[str]
    parts: ClassVar[Mapping[str, str]]

    def encode(self, values: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return what travels.

        Parameters
        ----------
        values : numpy.ndarray
            float32, shape [n, ...] or, without padding, [rows, ...].
        what : {"smashed", "gradients"}
            What they are; also the option that chose this encoding.

        Returns
        -------
        Mapping[str, numpy.ndarray]
            An array for each of `parts`.

        Raises
        ------
        WireError
            If a value cannot be sent so.
        """

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the values, float32, in the shape they had.

        Parameters
        ----------
        parts : Mapping[str, numpy.ndarray]
            An array for each of `parts`, of that dtype, finite where it holds floats, of any
            shape.

        Raises
        ------
        WireError
            If the arrays do not fit one another.
        """
