"""Sending of a sample's smashed data what changed since they were last sent, or nothing.

Both sides remember what arrived of each sample.  A client sends the difference between a sample's
smashed data and that, encoded; both add what arrived of it.  So what an encoding leaves out of one
message is in the difference of the next (error feedback, as in EF21, Richtárik et al. 2021,
arXiv 2106.05203).  A sample that has changed by less than a share of its norm is left out
(temporal skipping, as in SplitCom, arXiv 2602.10564).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from sfl_flower.data import batch_indices

__all__ = ["NEVER", "changed_samples", "memory_digest", "rows_of_round"]

NEVER = -1
"""The round in which a sample was last sent, where nothing is remembered of it."""


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


def memory_digest(rounds: npt.NDArray[np.int64]) -> bytes:
    """Return 8 bytes that name in which round each sample of a request was last sent."""
    return blake2b(rounds.astype("<i8").tobytes(), digest_size=8).digest()


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
