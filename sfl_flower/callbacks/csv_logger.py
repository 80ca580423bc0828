"""The numbers of a run as a table that any program reads."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from sfl_flower.callbacks.callback import Callback, Run
from sfl_flower.errors import ConfigError
from sfl_flower.report.events import scalars
from sfl_flower.report.history import RoundRecord

__all__ = ["CSVLogger"]


@dataclass(eq=False)
class CSVLogger(Callback):
    """Write a line of numbers a round; columns are called as TensorBoard's.

    A number that is unknown is left empty. A run that goes on writes the file anew from its
    history, so no round is there twice.

    Attributes
    ----------
    path : str or Path
        The file; ``history.csv`` in the run directory where it is left out.
    """

    path: str | Path = ""

    def claims(self) -> str:
        """Return the file that it writes."""
        return str(Path(self.path).expanduser()) if self.path else _NAME

    def check(self, run: Run) -> None:
        """Refuse a run that says nowhere where the file is to be."""
        if not self.path and run.out is None:
            raise ConfigError(
                "CSVLogger has neither a path nor a run directory; give it one, or the run out=."
            )

    def on_begin(self, run: Run) -> None:
        """Begin the file with what is known."""
        self._file = Path(self.path).expanduser() if self.path else Path(run.out or "", _NAME)
        self._columns: list[str] = []
        self._rows = [_row(record) for record in run.history]
        self._write()

    def on_round(self, record: RoundRecord) -> None:
        """Add a line; a name that is new becomes the last column of all lines."""
        row = _row(record)
        self._rows.append(row)
        if not set(row) <= set(self._columns):
            self._write()
            return
        with open(self._file, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _write(self) -> None:
        names = dict.fromkeys(["round", *self._columns])
        self._columns = list(names | dict.fromkeys(name for row in self._rows for name in row))
        with open(self._file, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)


_NAME = "history.csv"


def _row(record: RoundRecord) -> dict[str, float]:
    return {"round": record.round, **scalars(record)}
