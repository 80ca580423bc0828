"""What methods with probes check alike: the probe length, the scalars, and whether probes do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfl_flower.errors import ConfigError, WireError

__all__ = ["HOPELESS", "Noise", "check_mu", "check_scalars"]

HOPELESS = 500
"""d/P above which the noise of zeroth order is warned of.

On Fashion-MNIST, from scratch, d = 5 056 learns with 160 directions an update (d/P = 32) and with
40 (126); d = 10 186 with 5 (2 037) hardly does.  This is half way, by ratio.
"""


@dataclass(frozen=True)
class Noise:
    """What decides the noise of a zeroth-order gradient estimate.

    Attributes
    ----------
    size : int
        d, the parameters that the directions move.
    directions : int
        P, the directions whose estimates are averaged in an update.
    made_of : str
        What P is, in words.
    remedies : tuple of str
        What the method has besides probes and fewer parameters.
    """

    size: int
    directions: int
    made_of: str
    remedies: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """d/P: the variance of the estimate over ||g||²."""
        return self.size / self.directions

    def warning(self) -> str:
        """Return the warning, empty where d/P is low enough to learn."""
        if self.ratio <= HOPELESS:
            return ""
        fewer = "fewer trained parameters (task.trained)"
        remedies = ", ".join(("more probes", *self.remedies, fewer))
        return (
            f"Zeroth order is very noisy here: d = {self.size} parameters over P = "
            f"{self.directions} directions an update ({self.made_of}) is d/P = {self.ratio:.0f}; "
            f"the variance of an estimate is about d/P times ||g||^2, so its error is about "
            f"{self.ratio**0.5:.0f} times the gradient, and steps must be smaller and more by d/P. "
            f"From scratch hardly anything is learned above d/P = {HOPELESS}. Use {remedies}, or "
            "start from pre-trained weights."
        )


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
