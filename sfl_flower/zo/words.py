"""Random words: a sequential reader of one direction's Philox stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

__all__ = ["WORDS_PER_COUNTER", "WordStream"]

WORDS_PER_COUNTER = 4


class _PhiloxKey(ISeedSequence):
    """Hands the key over as it is; numpy's ``key=`` would first ask the system for entropy."""

    def __init__(self, key: int) -> None:
        self._words = np.array([key & ((1 << 64) - 1), key >> 64], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return self._words


class WordStream:
    """The 64-bit words of Philox4x64-10 under one key, from any word on.

    Reading is sequential: a pass over a direction costs one construction (some microseconds)
    and keeps nothing in memory.

    Parameters
    ----------
    philox_key : int
        128-bit key, see `sfl_flower.zo.keys.philox_key`.
    start : int
        Index of the first word to read, ≥ 0.
    """

    def __init__(self, philox_key: int, start: int = 0) -> None:
        block, skip = divmod(start, WORDS_PER_COUNTER)
        seed: Any = _PhiloxKey(philox_key)
        self._bits = np.random.Philox(seed, counter=block)
        if skip:
            self._bits.random_raw(skip)

    def read(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words, uint64."""
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def read_bytes(self, count: int) -> NDArray[np.uint8]:
        """Return the next ``count`` words as ``8 * count`` bytes, each word little-endian."""
        return self.read(count).astype("<u8", copy=False).view(np.uint8)
