"""The ServerApp and the ClientApp that Flower loads, for `flwr run` and for deployments.

Both read task and settings from the run configuration (``[tool.flwr.app.config]`` and
``--run-config``): a key for each setting that every method shares, and ``options`` for the settings
of the method and of the task, which Flower would otherwise want declared one by one.  For a task of
your own, write the same few lines with it: see `examples/own_task`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from functools import lru_cache
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.run import Plan, execute
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["client_app", "make_server_app", "read_run_config", "server_app", "task_from_context"]

_SERVER_KEYS = ("out", "resume")
_SETTLED_S, _POLL_S = 2.0, 0.1

_log = getLogger("flwr")


def read_run_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run configuration as flat options.

    Parameters
    ----------
    values : Mapping[str, Any]
        The run configuration; ``options`` holds pairs such as ``"probes=8 task.train-size=500"``,
        which win over keys of the same name.

    Raises
    ------
    ConfigError
        If ``options`` is not made of such pairs.
    """
    found = {k.replace("-", "_"): v for k, v in values.items() if k not in _SERVER_KEYS}
    text = str(found.pop("options", ""))
    try:
        pairs = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"options = '{text}' cannot be read: {error}.") from error
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(
                f"options holds '{pair}'; it takes pairs with spaces between them, such as "
                '"probes=8 client-lr=0.01".'
            )
        found[key.replace("-", "_")] = value
    return found


def _place(out: str) -> Path | None:
    """Return the run directory; relative paths would follow a directory that nobody chose."""
    path = Path(out).expanduser()
    if out and not path.is_absolute():
        raise ConfigError(
            f"out is '{out}'; it must be an absolute path, because Flower runs the app in a "
            "directory of its own."
        )
    return path if out else None


def _count(grid: Grid, deadline: float) -> int:
    """Return the number of nodes once it is above 0 and stays the same for a while."""
    began = since = time.monotonic()
    count = 0
    while not count or time.monotonic() < since + _SETTLED_S:
        if time.monotonic() > began + deadline:
            break
        if (now := len(list(grid.get_node_ids()))) != count:
            count, since = now, time.monotonic()
        time.sleep(_POLL_S)
    if not count:
        raise ConfigError(f"No client is online after {deadline:g} s; start the SuperNodes.")
    return count


def _plan(grid: Grid, run_config: Mapping[str, Any], name: str | None) -> Plan:
    values = read_run_config(run_config)
    if name is not None:
        values["task"] = name
    if values.get("clients") in (0, "0"):
        deadline = float(values.get("join_timeout", RunConfig.join_timeout))
        values["clients"] = _count(grid, deadline)
        _log.log(INFO, "clients = 0: training with the %d nodes online", values["clients"])
    out = _place(str(run_config.get("out", "")))
    return Plan.read(values, out, run_config.get("resume", False))


@lru_cache(maxsize=4)
def _task(name: str, options: tuple[tuple[str, Any], ...]) -> SplitTask:
    return load_task(name, **dict(options))


def task_from_context(context: Context) -> SplitTask:
    """Return the ready-made task that the run configuration names."""
    values = read_run_config(context.run_config)
    values.pop("clients", None)  # the server's business; 0 there means as many as are online
    values.pop("sampled", None)
    config, _, options = read_options(values)
    return _task(config.task, tuple(sorted(options.items())))


def make_server_app(task: SplitTask | None = None) -> ServerApp:
    """Return a ServerApp that trains as its run configuration says.

    Parameters
    ----------
    task : SplitTask, optional
        The learning problem; the one that the run configuration names when left out.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        plan = _plan(grid, context.run_config, None if task is None else task.name)
        result = execute(grid, task or task_from_context(context), plan)
        for name, value in result.summary.metrics.items():
            _log.log(INFO, "Final %s of the whole model: %.4f", name, value)
        if result.out is None:
            _log.log(INFO, "Nothing is kept of this run: out names no run directory")
        else:
            _log.log(INFO, "Run directory: %s", result.out)

    return app


server_app: ServerApp = make_server_app()
client_app: ClientApp = make_client_app(task_from_context)
