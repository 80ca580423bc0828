"""Values as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

__all__ = ["Float32"]


class Float32:
    """4 bytes a value, nothing lost; see `Encoding`."""

    name: ClassVar[str] = "float32"
    parts: ClassVar[Mapping[str, str]] = {"": "float32"}

    def encode(self, values: np.ndarray, what: str) -> Mapping[str, np.ndarray]:
        """Return the values themselves."""
        return {"": values}

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the values themselves."""
        return parts[""]
