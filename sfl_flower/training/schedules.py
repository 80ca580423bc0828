"""Learning rates over the rounds of a run."""

from __future__ import annotations

import math

__all__ = ["SCHEDULES", "schedule_text", "scheduled"]

SCHEDULES = ("constant", "linear", "cosine")
"""Names of the schedules; all but the first end at 0."""


def scheduled(schedule: str, lr: float, round: int, rounds: int, warmup: float = 0.0) -> float:
    """Return the learning rate of a round.

    Parameters
    ----------
    schedule : {"constant", "linear", "cosine"}
        How the rate goes from the first round to the last.
    lr : float
        The highest rate.
    round, rounds : int
        1 <= round <= rounds.
    warmup : float
        First rounds over which the rate rises linearly; below 1 it is a share of `rounds`.
    """
    rising = warmup * rounds if warmup < 1 else warmup
    rate = lr * min(1.0, round / rising) if rising else lr
    done = (round - 1) / rounds
    if schedule == "linear":
        return rate * (1.0 - done)
    if schedule == "cosine":
        return rate * 0.5 * (1.0 + math.cos(math.pi * done))
    return rate


def schedule_text(schedule: str, warmup: float) -> str:
    """Return a schedule as words, such as ``cosine, warm-up 0.05``."""
    return f"{schedule}, warm-up {warmup:g}" if warmup else schedule
