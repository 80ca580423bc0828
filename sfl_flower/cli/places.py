"""Where a run goes that was not told where: a directory of its own under ``runs/``."""

from __future__ import annotations

import re
from pathlib import Path

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError

__all__ = ["at_home", "free_place", "last_place", "usual_place"]


def at_home(text: str) -> Path:
    """Return a path of the command line; shells leave a ``~`` behind ``--out=`` as it is."""
    return Path(text).expanduser()


def usual_place(config: RunConfig) -> Path:
    """Return ``runs/TASK-METHOD-seedSEED``."""
    name = f"{config.task}-{config.method}-seed{config.seed}"
    return Path("runs") / re.sub(r"[^\w.-]+", "_", name)


def free_place(path: Path) -> Path:
    """Return the path, or with the first free number from 2 on where something is there."""
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def last_place(path: Path) -> Path:
    """Return what `free_place` gave out last.

    Raises
    ------
    ConfigError
        If nothing is there.
    """
    last, number = path, 2
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        last, number = candidate, number + 1
    if not last.exists():
        raise ConfigError(
            f"--resume finds no run in {path}; name its directory with --out, or leave --resume "
            "out to begin one."
        )
    return last
