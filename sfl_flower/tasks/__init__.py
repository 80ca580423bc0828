"""Ready-made tasks, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sfl_flower.errors import ConfigError
from sfl_flower.task import SplitTask
from sfl_flower.tasks.digits import digits

__all__ = ["TASKS", "load_task"]

TASKS: dict[str, Callable[..., SplitTask]] = {"digits": digits}


def load_task(name: str, **options: Any) -> SplitTask:
    """Return the ready-made task of this name."""
    if name not in TASKS:
        raise ConfigError(f"Unknown task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name](**options)
