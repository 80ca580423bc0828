"""Which of two values of a metric is better."""

from __future__ import annotations

import math
from typing import Annotated

from sfl_flower.callbacks.callback import Run
from sfl_flower.errors import ConfigError
from sfl_flower.options import Choice, nearest

__all__ = ["Mode", "check_metric", "improves"]

Mode = Annotated[str, Choice(("auto", "max", "min"))]
"""Whether more is better; with "auto" less is of a loss, and more of any other metric."""


def check_metric(name: str, run: Run) -> None:
    """Refuse a metric that no evaluation has.

    Raises
    ------
    ConfigError
        With those that there are.
    """
    if name not in run.metrics:
        near = nearest(name, run.metrics)
        hint = f" Did you mean '{near}'?" if near else ""
        legal = ", ".join(sorted(run.metrics))
        raise ConfigError(f"metric is '{name}'; evaluations of this run have {legal}.{hint}")


def improves(
    name: str, value: float, best: float | None, mode: str, min_delta: float = 0.0
) -> bool:
    """Tell whether a value of a metric is better than the best by more than `min_delta`.

    A value that is not finite is never better; where there is no best, any other is.
    """
    if not math.isfinite(value):
        return False
    less = mode == "min" or (mode == "auto" and name.rpartition("_")[2] == "loss")
    return best is None or (best - value if less else value - best) > min_delta
