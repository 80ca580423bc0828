"""Flower's programs as a benchmark starts them: in a folder of their own, all ended at its end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deployment.federation import REPOSITORY
from tests.processes import end

__all__ = ["Programs", "programs"]


@dataclass(frozen=True)
class Programs:
    """A folder, and what was started there.

    Attributes
    ----------
    folder : Path
        The folder, which goes with the block.
    home : Path
        `FLWR_HOME` of whatever is started.
    started : list of subprocess.Popen
        In order.
    """

    folder: Path
    home: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, name: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in a group of its own; what it prints goes to ``NAME.log``."""
        with (self.folder / f"{name}.log").open("a") as output:
            process: subprocess.Popen[str] = subprocess.Popen(
                list(command), stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, text=True, start_new_session=True, **options,
            )  # fmt: skip
        self.started.append(process)
        return process


@contextmanager
def programs(prefix: str) -> Iterator[Programs]:
    """Give a block a folder and Flower's environment; end all that was started in it.

    Parameters
    ----------
    prefix : str
        Of the folder's name.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as place:
        home = Path(place) / "home" / ".flwr"
        home.mkdir(parents=True)
        found = Programs(Path(place), home)
        os.environ.update(
            HOME=str(home.parent),
            FLWR_HOME=str(home),
            FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
            FLWR_TELEMETRY_ENABLED="0",
            FLWR_DISABLE_UPDATE_CHECK="1",
            PYTHONPATH=os.pathsep.join([str(REPOSITORY), before.get("PYTHONPATH", "")]),
            PATH=os.pathsep.join([str(Path(sys.executable).parent), before.get("PATH", "")]),
        )
        try:
            yield found
        finally:
            for process in reversed(found.started):
                end(process)
            os.environ.clear()
            os.environ.update(before)
