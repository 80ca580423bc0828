"""Keeping the best model of a run beside its last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sfl_flower.callbacks.callback import Callback, Run
from sfl_flower.callbacks.measured import Mode, check_metric, improves
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.options import check_options
from sfl_flower.report.history import RoundRecord
from sfl_flower.report.tensors import load_tensors, save_tensors

__all__ = ["BEST", "BestCheckpoint"]

BEST = "best.safetensors"
"""Name of the file in the run directory."""


@dataclass(eq=False)
class BestCheckpoint(Callback):
    """Keep the whole model of the best evaluation as ``best.safetensors`` in the run directory.

    Its metadata say the metric, its value and the round. Of equal values the first is kept. A run
    that goes on compares with what the file says, which it keeps where that is of a later round
    than the checkpoint: the round is done again, to the same model.

    Attributes
    ----------
    metric : str
        What is compared: ``accuracy``, ``loss``, or ``validation_accuracy`` where samples are held
        back.
    mode : {"auto", "max", "min"}
        Whether more is better; with "auto" less is of a loss, and more of any other metric.

    Raises
    ------
    ConfigError
        If a value is not legal.
    """

    metric: str = "accuracy"
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        check_options(self)

    def claims(self) -> str:
        """Return the file that it keeps."""
        return BEST

    def check(self, run: Run) -> None:
        """Refuse a metric that evaluations do not have, and a run without a directory."""
        check_metric(self.metric, run)
        if run.out is None:
            raise ConfigError(
                "BestCheckpoint keeps a file in the run directory, and this run has none; give it "
                "one with out=."
            )

    def on_begin(self, run: Run) -> None:
        """Take over what a run that goes on has kept."""
        assert run.out is not None
        self._run, self._path = run, run.out / BEST
        self._best: float | None = None
        if run.history:
            self._best = _kept(self._path, self.metric)
            for record in run.history[:-1]:  # also better ones of which no model is left
                value = record.metrics.get(self.metric, math.nan)
                if improves(self.metric, value, self._best, self.mode):
                    self._best = value
            if run.history[-1].metrics:  # of the model as it is: perhaps there was no time for it
                self.on_evaluation(run.history[-1])

    def on_evaluation(self, record: RoundRecord) -> None:
        """Keep the model where it is better than what is kept."""
        value = record.metrics.get(self.metric, math.nan)
        if improves(self.metric, value, self._best, self.mode):
            about = {"metric": self.metric, "value": repr(value), "round": str(record.round)}
            save_tensors(self._path, self._run.model(), {"format": "pt", **about})
            self._best = value


def _kept(path: Path, metric: str) -> float | None:
    """Return the value that a file says; None where there is none of this metric, or damaged."""
    try:
        header = load_tensors(path, "the best model")[1]
        return float(header["value"]) if header["metric"] == metric else None
    except (DataError, KeyError, ValueError):
        return None
