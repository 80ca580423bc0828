"""How a mini-batch is probed, as one value: what settings give, messages carry, clients do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sfl_flower.errors import ConfigError
from sfl_flower.zo.estimator import Estimator
from sfl_flower.zo.estimators import ESTIMATORS
from sfl_flower.zo.laws import LAWS

__all__ = ["MOST_NOPEEK", "MOST_PROBES", "MU_RANGE", "Probing"]

MOST_PROBES = 4096
MU_RANGE = (1e-12, 1e6)
MOST_NOPEEK = 1e6


@dataclass(frozen=True)
class Probing:
    """P probes a mini-batch, along directions of a law, of length μ, by an estimator.

    Attributes
    ----------
    probes : int
        P, in 1 … `MOST_PROBES`.
    law : str
        A name of `LAWS`.
    mu : float
        μ, in `MU_RANGE`.
    estimator : str
        A name of `ESTIMATORS`.
    stack : int
        Probes that run in one forward, in 1 … `MOST_PROBES`; more than one of the law ``rank_one``
        and of estimators that compare forwards.
    channel : int
        The dimension of the smashed data along which each channel has scalars of its own
        (`sfl_flower.zo.channels`); 0 where a probe gives one scalar.
    clip : float
        C, the largest norm of the gradient that the scalars of one sample may tell of, finite; 0
        where samples are not told apart.
    noise : float
        σ of the Gaussian noise that the client adds to scalars, in `sensitivity`; finite, and 0
        without a clip.
    nopeek : float
        α: what is measured has besides α times the distance correlation of a mini-batch's inputs
        with its smashed data (`sfl_flower.privacy.dependence`); in [0, `MOST_NOPEEK`], and 0 with a
        clip, for it is no sum over samples.

    Raises
    ------
    ConfigError
        If one is outside its range; it is called as the options are.
    """

    probes: int = 1
    law: str = "rademacher"
    mu: float = 1e-3
    estimator: str = "forward"
    stack: int = 1
    channel: int = 0
    clip: float = 0.0
    noise: float = 0.0
    nopeek: float = 0.0

    def __post_init__(self) -> None:
        low, high = MU_RANGE
        if type(self.probes) is not int or not 1 <= self.probes <= MOST_PROBES:
            raise ConfigError(f"probes is {self.probes}; it must be in [1, {MOST_PROBES}].")
        if not (math.isfinite(self.mu) and low <= self.mu <= high):
            raise ConfigError(f"mu is {self.mu}; it must be in [{low:g}, {high:g}].")
        for name, value, legal in (
            ("direction", self.law, LAWS),
            ("estimator", self.estimator, ESTIMATORS),
        ):
            if value not in legal:
                raise ConfigError(f"{name} is '{value}'; it must be one of {', '.join(legal)}.")

        if not (0 <= self.clip < math.inf and 0 <= self.noise < math.inf):
            raise ConfigError(
                f"clip is {self.clip} and noise {self.noise}; both must be finite, at least 0."
            )
        if self.noise and not self.clip:
            raise ConfigError(f"noise is {self.noise} and clip 0; noise needs a clip above 0.")
        if not 0 <= self.nopeek <= MOST_NOPEEK:
            raise ConfigError(f"nopeek is {self.nopeek}; it must be in [0, {MOST_NOPEEK:g}].")
        if self.nopeek and self.clip:
            raise ConfigError(
                f"nopeek is {self.nopeek:g} and clip {self.clip:g}; a distance correlation is no "
                "sum over samples that could be bounded, so one of them must be 0."
            )
        if type(self.stack) is not int or not 1 <= self.stack <= MOST_PROBES:
            raise ConfigError(f"stack is {self.stack}; it must be in [1, {MOST_PROBES}].")
        if self.stack > 1 and (self.law != "rank_one" or self.estimator == "jvp"):
            raise ConfigError(
                f"stack={self.stack} with direction={self.law} and estimator={self.estimator}: "
                "probes run in one forward along factors alone; use direction=rank_one with "
                "estimator=forward or central, or stack=1."
            )

    @property
    def rule(self) -> Estimator:
        """The estimator itself."""
        return ESTIMATORS[self.estimator]

    @property
    def unit(self) -> float:
        """What a scalar is divided by to be a derivative; see `Estimator.unit`."""
        return self.rule.unit(self.mu)

    def sensitivity(self, batch_size: int) -> float:
        """Return by how much a sample moves the scalars of a mini-batch at most, with a clip.

        ``C √P unit / B``, the Euclidean norm of all its scalars: √(mean v²) / unit of a sample's
        scalars estimates the norm of its gradient, and it counts 1/B in the mean.

        Parameters
        ----------
        batch_size : int
            B, samples of a mini-batch.
        """
        return self.clip * math.sqrt(self.probes) * self.unit / batch_size

    @property
    def forwards(self) -> int:
        """Forwards of a mini-batch in all, where the anchor's output serves nothing else."""
        return self.rule.anchored + self.rule.forwards * self.probes
