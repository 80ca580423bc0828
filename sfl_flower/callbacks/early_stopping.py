"""Ending a run that does not get better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfl_flower.callbacks.callback import Callback, Run
from sfl_flower.callbacks.measured import Mode, check_metric, improves
from sfl_flower.options import Count, Range, check_options
from sfl_flower.report.history import RoundRecord

__all__ = ["EarlyStopping"]


@dataclass(eq=False)
class EarlyStopping(Callback):
    """End the run after some evaluations in a row that were no better than the best.

    Attributes
    ----------
    metric : str
        What is watched: ``accuracy``, ``loss``, or ``validation_accuracy`` where samples are held
        back.
    patience : int
        Evaluations in a row without a new best after which the run ends.
    min_delta : float
        A value counts as a new best where it is better by more than this.
    mode : {"auto", "max", "min"}
        Whether more is better; with "auto" less is of a loss, and more of any other metric.

    Raises
    ------
    ConfigError
        If a value is not legal.
    """

    metric: str = "accuracy"
    patience: Count = 5
    min_delta: Annotated[float, Range(0)] = 0.0
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        check_options(self)
        self._reset()

    def _reset(self) -> None:
        self._best: float | None = None
        self._at, self._waited = 0, 0

    def check(self, run: Run) -> None:
        """Refuse a metric that evaluations do not have."""
        check_metric(self.metric, run)

    def on_begin(self, run: Run) -> None:
        """Forget what was counted: `stop` is asked for all records again."""
        self._reset()

    def stop(self, record: RoundRecord) -> str | None:
        """Return why the run is to end, where it does not get better."""
        value = record.metrics.get(self.metric)
        if value is None:
            return None
        if improves(self.metric, value, self._best, self.mode, self.min_delta):
            self._best, self._at, self._waited = value, record.round, 0
            return None
        self._waited += 1
        if self._waited < self.patience:
            return None
        best = (
            "no finite one yet" if self._best is None else f"{self._best:.6g} in round {self._at}"
        )
        return f"no better {self.metric} in {self._waited} evaluations, the best is {best}"
