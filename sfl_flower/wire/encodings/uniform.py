"""Numbers as multiples of one step: what is small beside the rest becomes zero and costs little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sfl_flower.errors import WireError
from sfl_flower.wire.encodings.encoding import check_finite

__all__ = ["Uniform"]

_STEP, _LARGE = ".step", ".large"
_ESCAPE = 8
"""The code of a multiple that four bits do not hold; it is among the large ones."""
_MOST, _LARGEST = 7, 32767


class Uniform:
    """Half a byte a value, and 2 for those beyond 7 steps; see `Format`.

    The step is a share of the root mean square of all values of a message, or more where the
    largest would be beyond 32 767 steps.  Every value is rounded to the nearest multiple; of each
    row of smashed data one stays.  One step for all spends bits where the square is: at equal mean
    squared error an even step needs the fewest bits of entropy (Gish & Pierce 1968), which
    `Deflate` then saves.  What is within half a step of zero does not travel: in cut gradients most
    of what belongs to samples that the server half has learned.

    Parameters
    ----------
    share : float
        Step over root mean square, within [0.01, 100].
    """

    name: ClassVar[str] = "uniform"
    parts: ClassVar[Mapping[str, str]] = {"": "uint8", _LARGE: "int16", _STEP: "float32"}
    packed: ClassVar[bool] = True

    def __init__(self, share: float) -> None:
        self._share = share

    def encode(self, rows: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return codes two to a byte, the large multiples in their order, and the step.

        Raises
        ------
        WireError
            If a value is not finite.
        """
        check_finite(rows, what)
        square = float(np.square(rows, dtype=np.float64).mean()) if rows.size else 0.0
        largest = float(np.abs(rows).max(initial=0.0))
        step = np.float32(max(self._share * math.sqrt(square), largest / _LARGEST))
        if not np.isfinite(step):
            raise WireError(f"The step of {self.name} is not finite; lower the learning rates.")
        if step < np.finfo(np.float32).tiny:  # so small that nothing of it can be divided by
            step = np.float32(0)
        codes = np.zeros(rows.shape, np.int16)
        if step:
            exact = np.rint(rows / step)  # in float32 a largest value may lie a little beyond
            codes = np.clip(exact, -_LARGEST, _LARGEST).astype(np.int16)
            if what == "smashed":  # a position of which nothing arrived would count as padding
                _keep_largest(codes, rows)
        flat = codes.ravel()
        large = np.abs(flat) > _MOST
        low = np.where(large, _ESCAPE, flat & 15).astype(np.uint8)
        if low.size % 2:
            low = np.append(low, np.uint8(0))
        packed = low[::2] | (low[1::2] << 4)
        return {"": packed, _LARGE: flat[large], _STEP: np.array([step], np.float32)}

    def decode(self, parts: Mapping[str, np.ndarray], count: int, size: int) -> np.ndarray:
        """Return each multiple times the step.

        Raises
        ------
        WireError
            If the parts are not those of such rows, or the step is negative, or zero with a
            multiple that is not.
        """
        whole = count * size
        pairs, step = parts[""].reshape(-1), parts[_STEP].reshape(-1)
        if pairs.size != -(-whole // 2):
            raise WireError(
                f"An array in the encoding {self.name} has {pairs.size} bytes of numbers; {count} "
                f"rows of {size} have {-(-whole // 2)}."
            )
        if step.size != 1 or not np.isfinite(step).all() or step[0] < 0:
            raise WireError(
                f"An array in the encoding {self.name} has the step {step[:4].tolist()}; it has "
                "one, finite and at least 0."
            )
        low = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:whole]
        codes = ((low ^ np.uint8(8)) - np.uint8(8)).view(np.int8).astype(np.int16)
        escaped, large = low == _ESCAPE, parts[_LARGE].reshape(-1)
        if large.size != int(escaped.sum()):
            raise WireError(
                f"An array in the encoding {self.name} has {large.size} large multiples, and "
                f"{int(escaped.sum())} places for them."
            )
        codes[escaped] = large
        if not step[0] and codes.any():
            raise WireError(f"An array in the encoding {self.name} has numbers of a step of 0.")
        with np.errstate(over="ignore"):  # whoever reads checks that values are finite
            values: np.ndarray = codes.astype(np.float32) * step[0]
        return values.reshape(count, size)


def _keep_largest(codes: np.ndarray, rows: np.ndarray) -> None:
    """Give the largest value of a row that became zero the code of one step."""
    lost = np.flatnonzero(~codes.any(axis=1) & rows.any(axis=1))
    largest = np.abs(rows[lost]).argmax(axis=1)
    codes[lost, largest] = np.sign(rows[lost, largest]).astype(np.int16)
