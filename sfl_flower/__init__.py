"""Split federated learning with forward-only clients, on Flower.

Names are imported at first use: a client app must not load comparisons, plots or rich.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfl_flower.comparison.compare import compare, compare_runs
    from sfl_flower.config import RunConfig
    from sfl_flower.methods import METHODS, Method
    from sfl_flower.profiling.profile import Profile, profile
    from sfl_flower.run.app import make_server_app
    from sfl_flower.run.client_app import make_client_app
    from sfl_flower.run.run import RunResult
    from sfl_flower.run.simulation import simulate
    from sfl_flower.task import Samples, SplitTask
    from sfl_flower.tasks import TASKS, load_task

__all__ = [
    "METHODS",
    "TASKS",
    "Method",
    "Profile",
    "RunConfig",
    "RunResult",
    "Samples",
    "SplitTask",
    "compare",
    "compare_runs",
    "load_task",
    "make_client_app",
    "make_server_app",
    "profile",
    "simulate",
]
__version__ = "0.1.0"

_HOME = {
    "METHODS": "methods",
    "Method": "methods",
    "TASKS": "tasks",
    "Profile": "profiling.profile",
    "RunConfig": "config",
    "RunResult": "run.run",
    "Samples": "task",
    "SplitTask": "task",
    "compare": "comparison.compare",
    "compare_runs": "comparison.compare",
    "load_task": "tasks",
    "make_client_app": "run.client_app",
    "make_server_app": "run.app",
    "profile": "profiling.profile",
    "simulate": "run.simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sfl_flower' has no attribute '{name}'")
    value = getattr(import_module(f"sfl_flower.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
