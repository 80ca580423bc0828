"""The ServerApp that Flower loads, for `flwr run` and for deployments.

It and the ClientApp (`sfl_flower.run.client_app`) read task and settings from the run configuration
(``[tool.flwr.app.config]`` and ``--run-config``): a key for each setting that every method shares,
and ``options`` for the settings of the method and of the task, which Flower would otherwise want
declared one by one.  For a task of your own, write the same few lines with it: see
`examples/own_task`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sfl_flower.callbacks import Callback, read_callbacks
from sfl_flower.callbacks.hooks import check_callbacks
from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.methods import Method
from sfl_flower.run.run import Plan, execute
from sfl_flower.run.run_config import read_run_config, task_from_context
from sfl_flower.task import SplitTask

__all__ = ["make_server_app", "server_app"]

_SETTLED_S, _POLL_S = 2.0, 0.1

_log = getLogger("flwr")


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


def _plan(
    grid: Grid,
    run_config: Mapping[str, Any],
    name: str | None,
    method: Method | None,
    callbacks: Sequence[Callback] = (),
) -> Plan:
    values = read_run_config(run_config)
    if name is not None:
        values["task"] = name
    if method is not None:
        values["method"] = method
    if values.get("clients") in (0, "0"):
        deadline = float(values.get("join_timeout", RunConfig.join_timeout))
        values["clients"] = _count(grid, deadline)
        _log.log(INFO, "clients = 0: training with the %d nodes online", values["clients"])
    out = _place(str(run_config.get("out", "")))
    named = _callbacks(str(run_config.get("callbacks", "")))
    return Plan.read(values, out, run_config.get("resume", False), (*callbacks, *named))


def _callbacks(text: str) -> tuple[Callback, ...]:
    """Return the callbacks of a run configuration, with spaces between them."""
    try:
        return read_callbacks(shlex.split(text))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"callbacks = '{text}' cannot be read: {error}.") from error


def make_server_app(
    task: SplitTask | None = None,
    method: Method | None = None,
    *,
    callbacks: Sequence[Callback] = (),
) -> ServerApp:
    """Return a ServerApp that trains as its run configuration says.

    Parameters
    ----------
    task : SplitTask, optional
        The learning problem; the one that the run configuration names when left out.
    method : Method, optional
        A method of your own, which the ClientApp has to be given too; the one that the run
        configuration names when left out.
    callbacks : sequence of Callback
        Told of the run as it goes, before those that the run configuration names under
        ``callbacks``; see `sfl_flower.callbacks`.
    """
    told = check_callbacks(callbacks)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        name = None if task is None else task.name
        plan = _plan(grid, context.run_config, name, method, told)
        result = execute(grid, task or task_from_context(context), plan)
        for name, value in result.summary.metrics.items():
            _log.log(INFO, "Final %s of the whole model: %.4f", name, value)
        if result.out is None:
            _log.log(INFO, "Nothing is kept of this run: out names no run directory")
        else:
            _log.log(INFO, "Run directory: %s", result.out)

    return app


server_app: ServerApp = make_server_app()
