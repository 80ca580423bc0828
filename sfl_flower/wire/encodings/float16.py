"""Values rounded to float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sfl_flower.errors import WireError

__all__ = ["Float16"]

_LARGEST = float(np.finfo(np.float16).max)
_NAMES = {"smashed": "smashed data", "gradients": "cut gradients"}


class Float16:
    """2 bytes a value, 11 significant bits, at most ±65504; see `Encoding`."""

    name: ClassVar[str] = "float16"
    parts: ClassVar[Mapping[str, str]] = {"": "float16"}

    def encode(self, values: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return the values, each rounded to the nearest float16.

        Raises
        ------
        WireError
            If a value is beyond ±65504.
        """
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            largest = float(np.abs(values).max())
            raise WireError(
                f"The {_NAMES[what]} hold a value of size {largest:.6g}, and float16 ends at "
                f"{_LARGEST:g}; set {what}=float32, or lower the learning rates if the values grow."
            )
        return {"": half}

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the values as float32, exactly."""
        return parts[""].astype(np.float32)
