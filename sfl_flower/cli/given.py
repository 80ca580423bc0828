"""What stands on the command line: KEY=VALUE pairs, tasks and functions of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from sfl_flower.errors import ConfigError, SflError
from sfl_flower.task import SplitTask
from sfl_flower.tasks import TASKS, load_task, read_task_options

__all__ = ["TASK_HELP", "build", "find", "given_task", "read_pairs"]

TASK_HELP = f"MODULE:ATTRIBUTE for a SplitTask of your own, or one of: {', '.join(TASKS)}"


def read_pairs(pairs: Iterable[str], example: str = "probes=8") -> dict[str, str]:
    """Return the values of ``--set KEY=VALUE`` by key, with ``_`` for ``-``.

    Raises
    ------
    ConfigError
        If a pair is none.
    """
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set got '{pair}'; it takes KEY=VALUE, such as --set {example}.")
        found[key.replace("-", "_")] = value
    return found


def given_task(name: str, options: Mapping[str, Any]) -> SplitTask:
    """Return the ready-made task of this name, or the user's own, ``module:attribute``.

    Parameters
    ----------
    name : str
        A key of `TASKS`, or a module and the name of a `SplitTask` in it, or of a function that
        returns one.
    options : Mapping[str, Any]
        Options of a ready-made task; one's own takes none.

    Raises
    ------
    ConfigError
        If there is no such task.
    """
    if ":" not in name:
        return load_task(name, **read_task_options(name, options))
    if options:
        key = next(iter(options)).replace("_", "-")
        raise ConfigError(
            f"--set task.{key} is for ready-made tasks; what {name} is, its module decides."
        )
    found = find("--task", name)
    if callable(found) and not isinstance(found, SplitTask):
        found = build("--task", name, found)
    if not isinstance(found, SplitTask):
        raise ConfigError(
            f"--task {name} is a {type(found).__name__}; it must be a SplitTask, or a function "
            "that returns one."
        )
    return found


def find(option: str, text: str) -> Any:
    """Return what ``module:attribute`` names; the current directory is looked into first.

    Raises
    ------
    ConfigError
        If the text is no such name, or the module cannot be imported or has no such attribute.
    """
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise ConfigError(
            f"{option} is '{text}'; it must be MODULE:ATTRIBUTE, such as nets:small for the "
            "function 'small' in nets.py."
        )
    # For good, and not only for the import: workers are given this process's path.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except SflError:
        raise
    except Exception as error:
        raise ConfigError(f"{option} {text} cannot be imported: {error}") from error


def build(option: str, text: str, function: Any) -> Any:
    """Return what the user's function returns.

    Raises
    ------
    ConfigError
        If it raises.
    """
    try:
        return function()
    except SflError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{option} {text} cannot be built: {said}") from error
