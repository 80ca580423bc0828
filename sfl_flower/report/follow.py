"""Following a run that goes on in another process, by what it leaves in its directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sfl_flower.errors import ConfigError, DataError, TrainingError
from sfl_flower.report.history import RoundRecord
from sfl_flower.report.lock import is_held
from sfl_flower.report.run_directory import CONFIG, HISTORY, RunDirectory

__all__ = ["Following"]


class Following:
    """A run directory that is read and never written to.

    Parameters
    ----------
    path : Path
        The directory of a run that is going, or has ended.

    Attributes
    ----------
    directory : RunDirectory
        What is in it.
    label : str
        Task and method.
    rounds : int
        How many rounds the run is to have.

    Raises
    ------
    ConfigError
        If the path is no run directory.
    DataError
        If its configuration is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.directory = RunDirectory(path, tensorboard=False)
        if not (self.directory.path / CONFIG).is_file():
            raise ConfigError(
                f"{path} is no run directory, for it holds no {CONFIG}; name the one that a run "
                "was given as --out."
            )
        try:
            config = self.directory.config
        except DataError:
            if (self.directory.path / HISTORY).exists():
                raise
            raise ConfigError(
                f"{path} is no run directory: its {CONFIG} is of something else, and it holds no "
                f"{HISTORY}; name the one that a run was given as --out."
            ) from None
        self.label = f"{config.get('task')} · {config.get('method')}"
        self.rounds = int(config.get("rounds") or 1)
        self._file = self.directory.path / HISTORY
        self._read, self._inode = 0, -1

    def news(self) -> Iterator[RoundRecord]:
        """Yield the records since the last call; all of them anew where the run was resumed.

        Raises
        ------
        DataError
            If a whole line cannot be read.
        """
        try:
            with open(self._file, "rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._read:
                    self._read, self._inode = 0, now.st_ino  # a resume writes it anew
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"cannot read {self._file}: {error.strerror}") from error
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
            if line:
                yield RoundRecord.from_json(line)

    def goes_on(self) -> bool:
        """Tell whether the run goes on."""
        return is_held(self.directory.path)

    def check_whole(self) -> None:
        """Raise unless the run that is not going is complete.

        Raises
        ------
        TrainingError
            If it was broken off; the message says how to go on.
        """
        if not self.directory.finished:
            raise TrainingError(
                f"No run is going in {self.directory.path}, and the one that was there was broken "
                "off; the same command with --resume goes on from its last checkpoint."
            )
