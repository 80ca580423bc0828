"""Split federated learning with forward-only clients, on Flower."""

from __future__ import annotations

from sfl_flower.app import make_server_app
from sfl_flower.client_app import make_client_app
from sfl_flower.comparison import compare, compare_runs
from sfl_flower.config import RunConfig
from sfl_flower.methods import METHODS
from sfl_flower.profiling import Profile, profile
from sfl_flower.run import RunResult
from sfl_flower.simulation import simulate
from sfl_flower.task import Samples, SplitTask
from sfl_flower.tasks import TASKS, load_task

__all__ = [
    "METHODS",
    "TASKS",
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
