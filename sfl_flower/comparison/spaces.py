"""What may be tried of an option: a range, or some values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfl_flower.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import Trial

__all__ = ["Among", "Between", "Space"]

LOG_RATIO = 20.0
"""From this ratio of its ends on a range is gone through by factors."""


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`.

    Attributes
    ----------
    low, high : float
        The ends, both included.
    whole : bool
        Whether only whole numbers.
    """

    low: float
    high: float
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(
                f"The range {self.low:g}..{self.high:g} is none; the first number must be below "
                "the second, and both finite."
            )

    @property
    def log(self) -> bool:
        """Whether it is gone through by factors."""
        return self.low > 0 and self.high / self.low >= LOG_RATIO

    def draw(self, trial: Trial, name: str) -> Any:
        """Return the value of a trial."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.4g}")

    def grid(self, count: int) -> list[Any]:
        """Return values from one end to the other."""
        shares = [at / (count - 1) for at in range(count)]
        if self.log:
            found = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            found = [self.low + share * (self.high - self.low) for share in shares]
        return [round(value) if self.whole else float(f"{value:.3g}") for value in found]


@dataclass(frozen=True)
class Among:
    """Some values.

    Attributes
    ----------
    values : tuple
        At least two.
    """

    values: tuple[Any, ...]

    def draw(self, trial: Trial, name: str) -> Any:
        """Return the value of a trial."""
        return trial.suggest_categorical(name, list(self.values))

    def grid(self, count: int) -> list[Any]:
        """Return the values."""
        return list(self.values)


Space = Between | Among
