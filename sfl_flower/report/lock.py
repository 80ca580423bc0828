"""A lock on a run directory: one process at a time trains into it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from types import ModuleType

from sfl_flower.errors import ConfigError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # pragma: no cover (Windows)
    fcntl = None

__all__ = ["LOCK", "Lock", "is_held"]

LOCK = ".lock"
"""Name of the file in the run directory; it is there while a run is going."""


_HOLDER = "process {} on {}\n"


class Lock:
    """Held from construction until `release`; the system lets go of it when the process ends.

    Where the file system knows no locks nothing is locked.

    Parameters
    ----------
    directory : Path
        An existing directory.

    Raises
    ------
    ConfigError
        If another run holds it (the message says which process on which machine), or the
        directory cannot be written to.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK
        self._file: int | None = None
        if fcntl is None:  # pragma: no cover
            return
        while self._file is None:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                problem = f"Cannot use the run directory {directory}: {error.strerror}; choose"
                raise ConfigError(
                    f"{problem} another with out=.", shell=f"{problem} another with --out."
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                problem = f"A run is going in {directory} ({holder}); wait until it ends, or choose"
                raise ConfigError(
                    f"{problem} another directory with out=.",
                    shell=f"{problem} another directory with --out.",
                ) from None
            except OSError:  # no locks here: nothing is to say that a run is going
                with contextlib.suppress(OSError):
                    if os.fstat(file).st_size == 0:
                        self._path.unlink()
                os.close(file)
                return
            # Whoever held it may have removed the file since it was opened.
            if self._is_there(file):
                self._file = file
            else:
                os.close(file)
        os.ftruncate(self._file, 0)
        os.write(self._file, _HOLDER.format(os.getpid(), socket.gethostname()).encode())

    def _is_there(self, file: int) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        return False

    def release(self) -> None:
        """Let the next run have the directory."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()  # before the lock goes, or it could be another one's
            os.close(self._file)
            self._file = None


def is_held(directory: Path) -> bool:
    """Tell whether a run is going in a directory, as far as can be seen without locking it.

    A process of this machine that has died, and left its lock, holds nothing; of one on another
    machine nothing more than that can be seen.
    """
    try:
        text = (directory / LOCK).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    found = re.fullmatch(re.escape(_HOLDER).replace(r"\{\}", "(.+)"), text)
    if found is None:  # not yet written
        return True
    if found[2] != socket.gethostname():
        return True
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):  # somebody else's process
        return True
    return True
