"""Options of secure sums, and what they do not go with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError
from sfl_flower.options import Range
from sfl_flower.privacy.secure_circle import FEWEST, Circle, threshold_of
from sfl_flower.privacy.secure_numbers import largest, step_bits
from sfl_flower.server.aggregate import find_aggregator
from sfl_flower.server.private import PrivacySettings
from sfl_flower.server.sealing import SealSettings

__all__ = ["SecureSettings", "check_secure", "sum_bits"]


@dataclass(frozen=True)
class SecureSettings(SealSettings, PrivacySettings):
    """Options of what others may learn: secure sums, beside seals and differential privacy.

    Attributes
    ----------
    secure_sums : bool
        Whether scalars travel under masks that cancel in their sum. With shared directions alone.
    secure_threshold : float
        With secure_sums: how many of the holders of a client's masks, itself and its neighbours,
        open them: a share of them, or their number. So many must answer, and of all clients as
        large a share; more than half.
    secure_neighbours : int
        With secure_sums: clients with which each shares masks, an even number; 0: all others.
    """

    secure_sums: bool = False
    secure_threshold: Annotated[float, Range(0, 1e6)] = 0.6
    secure_neighbours: Annotated[int, Range(0, 1000)] = 8


_ALONE = {
    "directions": ("shared", "clients' scalars are added up, which takes the same directions"),
    "pipeline": (False, "shares are dealt and used within a round"),
    "guide": ("none", "the scalar of a guide is clipped beside the others"),
    "dp_clip": (0.0, "the two do not work together"),
    "scalars": ("batch", "scalars of channels are clipped apart"),
}
"""Options that secure sums go with at this value only, and why."""


def check_secure(config: RunConfig, settings: Settings) -> None:
    """Refuse secure sums with what needs single scalars, or more clients than there are.

    Raises
    ------
    ConfigError
        They cannot be had; or the package `cryptography` is missing.
    """
    told = vars(settings)
    if not told["secure_sums"]:
        return
    for name, (wanted, why) in _ALONE.items():
        if told[name] != wanted:
            legal, given = (str(value).lower() for value in (wanted, told[name]))
            raise ConfigError(
                f"secure_sums=true with {name}={given}: {why}; set {name}={legal}, or "
                "secure_sums=false."
            )
    if not find_aggregator(config.aggregator).linear:
        raise ConfigError(
            f"secure_sums=true with aggregator={config.aggregator}: it compares single clients' "
            "scalars, which nobody sees; set aggregator=mean, or secure_sums=false."
        )
    width, clients = told["secure_neighbours"], config.cohort
    if width % 2:
        raise ConfigError(
            f"secure_neighbours is {width}; it must be even, as many on either side of a client, "
            "or 0 for all others."
        )
    if clients < FEWEST:
        raise ConfigError(
            f"secure_sums=true with {clients} clients a round: of two, each knows the other's "
            f"part of a sum; let at least {FEWEST} take part, or set secure_sums=false."
        )
    threshold_of(told["secure_threshold"], Circle(clients, width, 1.0).neighbours + 1)
    sum_bits(config, settings, clients)
    from sfl_flower.privacy import secure_keys  # noqa: F401 (says what is missing)


def sum_bits(config: RunConfig, settings: Settings, clients: int) -> int:
    """Return b: a scalar, as a derivative, travels as a multiple of 2^-b.

    Raises
    ------
    ConfigError
        See `step_bits`.
    """
    told = vars(settings)
    bound = largest(told["scalar_limit"], told["clip_norm"], told["probes"])
    most = 1 if config.mean == "uniform" else (config.batch_size + 1) * told["minibatches"]
    return step_bits(bound, clients, most)
