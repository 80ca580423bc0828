"""The run configuration of a Flower app, as flat options, and the task that it names."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from flwr.app import Context

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["read_run_config", "task_from_context"]

_SERVER_KEYS = ("callbacks", "out", "resume")


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
    options = {k.replace("-", "_"): v for k, v in values.items() if k not in _SERVER_KEYS}
    text = str(options.pop("options", ""))
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
        options[key.replace("-", "_")] = value
    return options


@lru_cache(maxsize=4)
def _task(name: str, options: tuple[tuple[str, Any], ...]) -> SplitTask:
    return load_task(name, **dict(options))


def task_from_context(context: Context) -> SplitTask:
    """Return the ready-made task that the run configuration names.

    Settings of the run and of its method are the server's business and are not looked at.
    """
    values = read_run_config(context.run_config)
    own = {key.removeprefix("task."): value for key, value in values.items() if key[:5] == "task."}
    return _task(str(values.get("task", RunConfig.task)), tuple(sorted(own.items())))
