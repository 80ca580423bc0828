"""TensorBoard events beside those of the run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfl_flower.callbacks.callback import Callback, Ended, Run
from sfl_flower.callbacks.packages import need
from sfl_flower.errors import ConfigError
from sfl_flower.report.events import EventWriter
from sfl_flower.report.history import RoundRecord

__all__ = ["TensorBoard"]


@dataclass(eq=False)
class TensorBoard(Callback):
    """Write TensorBoard events into a folder of your choice.

    A run directory has events of its own, in ``tensorboard``: this is for runs without one, or
    for a folder below one that many runs share; two runs in one folder would purge each other.

    Attributes
    ----------
    path : str or Path
        The folder of this run's event files.

    Raises
    ------
    ConfigError
        If the path is empty.
    """

    path: str | Path

    def __post_init__(self) -> None:
        if not str(self.path):
            raise ConfigError("TensorBoard has no path; give it the folder of its event files.")

    def check(self, run: Run) -> None:
        """Refuse to begin without the package."""
        need("tensorboard", "tensorboard")

    def on_begin(self, run: Run) -> None:
        """Open the folder; the first record purges what is there of its round and later ones."""
        self._events = EventWriter(Path(self.path).expanduser())

    def on_round(self, record: RoundRecord) -> None:
        """Write the numbers of a round."""
        self._events.write(record)

    def on_end(self, ended: Ended) -> None:
        """Close the file."""
        self._events.close()
