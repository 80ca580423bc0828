"""A complete run, read back from its directory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfl_flower.report.history import History
from sfl_flower.report.run_directory import RunDirectory
from sfl_flower.report.table import Summary
from sfl_flower.report.varying import VARYING

__all__ = ["FinishedRun"]

VARIES = VARYING | {"server_lr"}
"""Settings in which the runs of one row may differ."""


@dataclass(frozen=True)
class FinishedRun:
    """What a complete run left.

    Attributes
    ----------
    path : Path
        Its directory.
    config : Mapping[str, Any]
        Its resolved configuration.
    facts : Mapping[str, Any]
        What else decides whether it can be compared, see `RunDirectory.write_summary`.
    summary : Summary
        Its outcome.
    """

    path: Path
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    summary: Summary

    @classmethod
    def load(cls, path: Path) -> FinishedRun:
        """Read a run directory.

        Raises
        ------
        DataError
            If the run is not complete or a file cannot be read.
        """
        directory = RunDirectory(path, tensorboard=False)
        summary, facts = directory.load_summary()
        return cls(path, directory.config, facts, summary)

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.config["method"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    @property
    def server_lr(self) -> float:
        """Rate of the server's optimiser."""
        return float(self.config["server_lr"])

    @property
    def settings(self) -> dict[str, Any]:
        """Its configuration without what the runs of one row may differ in."""
        return {key: value for key, value in self.config.items() if key not in VARIES}

    def score(self, metric: str) -> float:
        """Return the last evaluation's result, NaN when there is none."""
        return float(self.summary.metrics.get(metric, math.nan))

    def history(self) -> History:
        """Read the records of the rounds."""
        return RunDirectory(self.path, tensorboard=False).history
