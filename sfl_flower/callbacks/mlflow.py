"""MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfl_flower.callbacks.callback import Run
from sfl_flower.callbacks.packages import need
from sfl_flower.callbacks.tracker import Tracker

__all__ = ["MLflow"]

_AT_ONCE, _LONGEST = 100, 500
"""Parameters of a request, and characters of one: what every store of MLflow takes."""


@dataclass(eq=False)
class MLflow(Tracker):
    """Log a run to MLflow.

    Attributes
    ----------
    experiment : str
        The experiment, made where there is none.
    name : str
        Of the run; MLflow makes one up where it is left out.
    uri : str
        The store, such as ``sqlite:///mlflow.db``; left out, what MLFLOW_TRACKING_URI says.
    """

    package = "mlflow"

    experiment: str = "sfl-flower"
    name: str = ""
    uri: str = ""

    def open(self, run: Run, known: str | None) -> str:
        """Open the run."""
        self._api: Any = need("mlflow.tracking", "mlflow").MlflowClient(self.uri or None)
        self._entities: Any = need("mlflow.entities", "mlflow")
        if known is not None:
            self._api.update_run(known, status="RUNNING")
            self._own = known
            return known
        found = self._api.get_experiment_by_name(self.experiment)
        home = found.experiment_id if found else self._api.create_experiment(self.experiment)
        self._own = str(self._api.create_run(home, run_name=self.name or None).info.run_id)
        told = [self._entities.Param(k, str(v)[:_LONGEST]) for k, v in run.config.items()]
        for first in range(0, len(told), _AT_ONCE):
            self._api.log_batch(self._own, params=told[first : first + _AT_ONCE])
        return self._own

    def log(self, numbers: Mapping[str, float], round: int) -> None:
        """Log the numbers of a round."""
        now = int(1000 * time.time())
        points = [self._entities.Metric(k, v, now, round) for k, v in numbers.items()]
        self._api.log_batch(self._own, metrics=points)

    def close(self, why: str, failed: bool) -> None:
        """Close the run."""
        self._api.set_tag(self._own, "ended", why)
        self._api.set_terminated(self._own, "FAILED" if failed else "FINISHED")
