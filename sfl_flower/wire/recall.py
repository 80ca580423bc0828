"""Sending of a sample's smashed data what changed since they were last sent, or nothing.

Both sides remember what arrived of each sample.  A client sends the difference between a sample's
smashed data and that, encoded; both add what arrived of it.  So what an encoding leaves out of one
message is in the difference of the next (error feedback, as in EF21, Richtárik et al. 2021,
arXiv 2106.05203).  A sample that has changed by less than a share of its norm is left out
(temporal skipping, as in SplitCom, arXiv 2602.10564).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from zlib import crc32

import numpy as np
import numpy.typing as npt

from sfl_flower.data import batch_indices
from sfl_flower.wire.draft import Draft, Encodings
from sfl_flower.wire.reader import Reader

__all__ = [
    "NEVER", "arrived", "changed_samples", "memory_check", "memory_digest", "rows_of_round",
]  # fmt: skip

NEVER = 0
"""The check of a sample of which nothing is remembered."""


def rows_of_round(
    key: str, round: int, minibatches: int, held: int, batch_size: int
) -> npt.NDArray[np.int64]:
    """Return the samples of a client's mini-batches of a round, one after another.

    Parameters
    ----------
    key : str
        The client's key.
    round, minibatches, batch_size : int
        As the request names them.
    held : int
        How many samples the client holds.
    """
    steps = range(minibatches)
    return np.concatenate([batch_indices(key, round, step, held, batch_size) for step in steps])


def memory_check(z: np.ndarray) -> int:
    """Return what tells one remembered array from another, never `NEVER`."""
    return crc32(np.ascontiguousarray(z, np.float32).data) or 1


def memory_digest(checks: Iterable[int]) -> bytes:
    """Return 8 bytes that name what is remembered of samples, from the check of each."""
    return blake2b(np.array(list(checks), "<u4").tobytes(), digest_size=8).digest()


def arrived(z: np.ndarray, encodings: Encodings) -> np.ndarray:
    """Return what a receiver reads of smashed data, with what it does about padding."""
    draft = Draft(encodings)
    draft.samples("z", z, "smashed")
    return Reader(draft.content(), "reply", encodings).samples("z", "smashed")


def changed_samples(z: np.ndarray, old: np.ndarray, share: float) -> npt.NDArray[np.bool_]:
    """Return which samples are further from what is remembered than a share of their norm.

    Parameters
    ----------
    z, old : numpy.ndarray
        Smashed data and what is remembered of them, float32, shape [n, ...], n at least 1.
    share : float
        The share of ``‖z‖``.

    Returns
    -------
    numpy.ndarray
        bool, shape [n]; where none is further, the one that changed most is True.
    """
    n = len(z)
    moved = np.linalg.norm((z - old).reshape(n, -1).astype(np.float64), axis=1)
    size = np.linalg.norm(z.reshape(n, -1).astype(np.float64), axis=1)
    found: npt.NDArray[np.bool_] = ~(moved <= share * size)  # what is not finite counts as changed
    if not found.any():
        found[int(np.argmax(moved))] = True
    return found
