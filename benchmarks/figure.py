"""One measured number, the target it is held against, and how both are printed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sfl_flower.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Parameters
    ----------
    name : str
        What was measured, in snake case; unique over all benchmarks.
    value : float
        The measurement.
    unit : str
        Unit of value and target: ``"s"``, ``"samples/s"``, ``"ratio"`` ...
    target : float or None
        The bound to reach, None where there is none.
    setting : str
        The conditions, in one line: sizes, threads, repetitions.
    lower_is_better : bool
        Whether the target is an upper bound.

    Raises
    ------
    ConfigError
        If the name is not a snake case identifier.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    setting: str = ""
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise ConfigError(
                f"A figure is named {self.name!r}; use a snake case identifier such as 'round_s'."
            )

    @property
    def met(self) -> bool | None:
        """Whether the target is reached (never by NaN); None without a target."""
        if self.target is None:
            return None
        if self.lower_is_better:
            return self.value <= self.target
        return self.value >= self.target

    @property
    def bound(self) -> str:
        """The target as a person reads it: ``">= 0.5"``, or an empty string."""
        if self.target is None:
            return ""
        return f"{'<=' if self.lower_is_better else '>='} {self.target:g}"

    def to_json(self) -> str:
        """Return one line of JSON; a value that is not finite becomes null."""
        finite = self.value if abs(self.value) < float("inf") else None
        return json.dumps(
            {
                "name": self.name,
                "value": finite,
                "unit": self.unit,
                "target": self.target,
                "setting": self.setting,
                "met": self.met,
                "lower_is_better": self.lower_is_better,
            },
            ensure_ascii=False,
            allow_nan=False,
        )
