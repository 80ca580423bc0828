"""The ServerApp and the ClientApp that Flower loads, for `flwr run` and for deployments.

Both read task and settings from the run configuration (``[tool.flwr.app.config]`` and
``--run-config``).  For a task of your own, write the same few lines with it: see
`examples/own_task`.
"""

from __future__ import annotations

from functools import lru_cache
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from sfl_flower.client_app import make_client_app
from sfl_flower.methods import read_options
from sfl_flower.run import Plan, execute
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["client_app", "make_server_app", "server_app", "task_from_context"]

_SERVER_KEYS = ("out", "resume")


@lru_cache(maxsize=4)
def _task(name: str, options: tuple[tuple[str, Any], ...]) -> SplitTask:
    return load_task(name, **dict(options))


def task_from_context(context: Context) -> SplitTask:
    """Return the ready-made task that the run configuration names."""
    values = {k: v for k, v in context.run_config.items() if k not in _SERVER_KEYS}
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
        values = dict(context.run_config)
        out = str(values.pop("out", ""))
        resume = bool(values.pop("resume", False))
        plan = Plan.read(values, Path(out).absolute() if out else None, resume)
        result = execute(grid, task or task_from_context(context), plan)
        log = getLogger("flwr")
        for name, value in result.summary.metrics.items():
            log.log(INFO, "Final %s of the whole model: %.4f", name, value)
        if result.out is not None:
            log.log(INFO, "Run directory: %s", result.out)

    return app


server_app: ServerApp = make_server_app()
client_app: ClientApp = make_client_app(task_from_context)
