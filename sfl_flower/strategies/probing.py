"""What methods with probes check alike: the probe length, and the scalars that come back."""

from __future__ import annotations

import numpy as np

from sfl_flower.errors import ConfigError, WireError

__all__ = ["check_mu", "check_scalars"]


def check_mu(mu: float) -> None:
    """Raise `ConfigError` unless a probe length can be used."""
    if not 1e-12 <= mu <= 1e6:
        raise ConfigError(f"mu is {mu}; it must be in [1e-12, 1e+06].")


def check_scalars(scalars: np.ndarray, mu: float, limit: float) -> None:
    """Raise `WireError` if a scalar has |v| / μ above the method's `scalar_limit`."""
    largest = float(np.abs(scalars).max()) / mu
    if largest > limit:
        raise WireError(
            f"a scalar gives |v| / mu = {largest:.3g}, more than scalar-limit = {limit:g}."
        )
