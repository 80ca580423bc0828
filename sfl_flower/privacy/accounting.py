"""How much ε Gaussian noise costs: the exact formulas of dp-accounting, Flower's own accountant.

A sample that is in T mini-batches, to each of which noise of σ times what it moves them at most is
added, is in T Gaussian mechanisms.  Together they are one Gaussian mechanism of noise σ / √T, whose
ε at a δ is known without a bound (Balle and Wang 2018, arXiv 1805.06530).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from sfl_flower.errors import ConfigError

__all__ = ["epsilon_of", "most_times", "noise_for"]


def _accountant() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigError(
            "Privacy is accounted for by the package dp-accounting, which is not installed; "
            "install it with pip install 'sfl-flower[dp]', or leave out dp_noise and dp_epsilon."
        ) from error
    return dp_accounting


@lru_cache(maxsize=1024)
def epsilon_of(noise: float, times: int, delta: float) -> float:
    """Return the ε of a sample after it was in some mini-batches.

    Parameters
    ----------
    noise : float
        σ, the noise's standard deviation over what one sample moves a mini-batch's scalars at most.
    times : int
        T, the mini-batches that it was in.
    delta : float
        δ.

    Raises
    ------
    ConfigError
        If dp-accounting is not installed.
    """
    accountant = _accountant()
    if not times:
        return 0.0
    return float(accountant.get_epsilon_gaussian(noise / math.sqrt(times), delta))


@lru_cache(maxsize=64)
def noise_for(epsilon: float, times: int, delta: float) -> float:
    """Return the smallest σ with which a sample may be in so many mini-batches for an ε.

    Parameters
    ----------
    epsilon, delta : float
        What is not to be exceeded.
    times : int
        T, at least 1.

    Raises
    ------
    ConfigError
        If dp-accounting is not installed.
    """
    return float(_accountant().get_sigma_gaussian(epsilon, delta)) * math.sqrt(times)


def most_times(epsilon: float, noise: float, delta: float) -> int:
    """Return in how many mini-batches a sample may be with this noise; 0 if in none.

    Parameters
    ----------
    epsilon, noise, delta : float
        As in `epsilon_of`.
    """
    # The last digits of σ are those of a search, and a calibrated one is to allow what it is for.
    return math.floor((noise / noise_for(epsilon, 1, delta)) ** 2 * (1 + 1e-9))
