"""Trackio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfl_flower.callbacks.callback import Run
from sfl_flower.callbacks.packages import need
from sfl_flower.callbacks.tracker import Tracker

__all__ = ["Trackio"]


@dataclass(eq=False)
class Trackio(Tracker):
    """Log a run to Trackio.

    Everything stays on this machine, below TRACKIO_DIR, unless the package is told otherwise by
    its own variables.

    Attributes
    ----------
    project : str
        The project.
    name : str
        Of the run; Trackio makes one up where it is left out.
    """

    package = "trackio"

    project: str = "sfl-flower"
    name: str = ""

    def open(self, run: Run, known: str | None) -> str:
        """Open the run; Trackio knows it by its name."""
        self._run: Any = need("trackio", "trackio").init(
            project=self.project,
            name=known or self.name or None,
            resume="never" if known is None else "must",
            config=dict(run.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return str(self._run.name)

    def log(self, numbers: Mapping[str, float], round: int) -> None:
        """Log the numbers of a round."""
        self._run.log(dict(numbers), step=round)

    def close(self, why: str, failed: bool) -> None:
        """Close the run; Trackio has no place for how it ended."""
        self._run.finish()
