"""What trackers have in common: which run of theirs a run directory belongs to, and how far."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from sfl_flower.callbacks.callback import Callback, Ended, Run
from sfl_flower.callbacks.packages import need
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report.events import scalars
from sfl_flower.report.files import read_json, write_json
from sfl_flower.report.history import RoundRecord

__all__ = ["TRACKERS", "Tracker"]

TRACKERS = "trackers.json"
"""File of the run directory: for each tracker its own id of the run, and the last round logged."""


class Tracker(Callback):
    """Logs a run, with its settings, somewhere else; the step is the round.

    A run that goes on from its directory goes on in the same run there. Rounds that are done again
    are not logged again.
    """

    package: ClassVar[str]
    """The package, and the extra of this project that brings it."""

    @abstractmethod
    def open(self, run: Run, known: str | None) -> str:
        """Open the run there, the known one or a new one; return its id."""

    @abstractmethod
    def log(self, numbers: Mapping[str, float], round: int) -> None:
        """Log the finite numbers of a round, called as in TensorBoard."""

    @abstractmethod
    def close(self, why: str, failed: bool) -> None:
        """Close the run there, with a sentence on how it ended."""

    def claims(self) -> str:
        """Return its entry in the file of ids, which has one of each kind."""
        return f"{TRACKERS}, entry {self.package}"

    def check(self, run: Run) -> None:
        """Refuse to begin without the package, or with a file of ids that is damaged."""
        need(self.package, self.package)

    def on_begin(self, run: Run) -> None:
        """Open the run there."""
        self._path = None if run.out is None else run.out / TRACKERS
        known = self._kept().get(self.package) if run.history else None
        self._round = -1 if known is None else int(known["round"])
        self._id = self.open(run, None if known is None else str(known["id"]))
        self._keep()

    def on_round(self, record: RoundRecord) -> None:
        """Log a round, unless it is there."""
        if record.round > self._round:
            found = {name: v for name, v in scalars(record).items() if math.isfinite(v)}
            self.log(found, record.round)
            self._round = record.round
            self._keep()

    def on_end(self, ended: Ended) -> None:
        """Close the run there."""
        self.close(ended.why or "Every round was run.", ended.failed)

    def _keep(self) -> None:
        if self._path is not None:
            own = {self.package: {"id": self._id, "round": self._round}}
            write_json(self._path, {**self._kept(), **own})

    def _kept(self) -> dict[str, Any]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            found = dict(read_json(self._path))
            for each in found.values():
                str(each["id"]), int(each["round"])
        except (DataError, KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{self._path} is damaged: it says which runs of trackers this run is; put it back "
                "as it was, or remove it to begin new ones there."
            ) from None
        return found
