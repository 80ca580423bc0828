"""Which samples are in which mini-batch: a pure function of run, client, round and step.

Every method asks the same function, so at equal (round, step) every method sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sfl_flower.data.seeding import generator
from sfl_flower.errors import ConfigError, DataError

__all__ = ["batch_indices", "chunks", "client_samples", "largest_batch", "steps_per_epoch"]


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the mini-batches in one pass over `n` samples: ``ceil(n / batch_size)``.

    One less where a single sample would be left: it joins the mini-batch before it, because
    BatchNorm in train mode cannot run on one sample.
    """
    if n < 1:
        raise DataError(f"A client has {n} samples; it needs at least 1 to make a batch.")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    return max(1, -(-(n - 1) // batch_size)) if batch_size > 1 else n


def largest_batch(n: int, batch_size: int) -> int:
    """Return the most samples that a mini-batch of a client with `n` samples may hold."""
    return batch_size + (1 < batch_size < n and n % batch_size == 1)


def client_samples(held: int, batch_size: int, batches: int) -> int:
    """Return the samples in a client's first mini-batches of a round, short ones as they are.

    Parameters
    ----------
    held : int
        Training samples of the client.
    batch_size : int
        Samples per mini-batch.
    batches : int
        Mini-batches it runs; every `steps_per_epoch` of them are one epoch.
    """
    epochs, rest = divmod(batches, steps_per_epoch(held, batch_size))
    return epochs * held + rest * batch_size


@lru_cache(maxsize=16)
def _order(key: str, round: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    order = generator("batches", key, round, epoch).permutation(n)
    order.flags.writeable = False
    return order


def batch_indices(
    key: str, round: int, step: int, n: int, batch_size: int
) -> npt.NDArray[np.int64]:
    """Return the rows of one mini-batch of one client.

    The client's `n` samples are shuffled by a hash of (key, round, epoch) and dealt out in order.
    When they run out, at ``step == steps_per_epoch(n, batch_size)``, the next epoch of the same
    round starts with a fresh shuffle. The last batch of an epoch may be short, down to two
    samples; where one sample would be left, it is in the batch before, which is then one larger.

    Parameters
    ----------
    key : str
        The client's key, see `client_key`.
    round : int
        The round, any integer.
    step : int
        The step within the round, from 0.
    n : int
        How many samples the client holds.
    batch_size : int
        Samples asked for; with ``n < batch_size`` every batch is all `n` of them.

    Returns
    -------
    ndarray of int64, shape [b], 1 <= b <= batch_size + 1
        Positions among the client's own samples, 0 <= index < n; read-only.

    Raises
    ------
    DataError
        `n` is below 1.
    ConfigError
        `batch_size` is below 1 or `step` is negative.
    """
    steps = steps_per_epoch(n, batch_size)
    if step < 0:
        raise ConfigError(f"step is {step}; steps count from 0.")
    epoch, place = divmod(step, steps)
    order = _order(key, round, epoch, n)
    return order[place * batch_size : n if place == steps - 1 else (place + 1) * batch_size]


def chunks(n: int, size: int) -> Iterator[slice]:
    """Yield slices that cover ``range(n)`` in order, each of `size` but the last."""
    if size < 1:
        raise ConfigError(f"The chunk size is {size}; it must be at least 1.")
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
