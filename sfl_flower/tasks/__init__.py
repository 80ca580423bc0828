"""Ready-made tasks, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, get_type_hints

from sfl_flower.errors import ConfigError
from sfl_flower.options import coerce
from sfl_flower.task import SplitTask

__all__ = ["TASKS", "load_task", "read_task_options", "task_options"]

_NAMES = (
    "cifar10", "digits", "e2e", "efficientnet_cifar10", "fashion_mnist", "rte", "smollm2_e2e",
    "smollm2_sst2", "sst2", "synthetic",
)  # fmt: skip
"""Each is a module of this room and the builder in it. Whoever adds a task adds its name here."""


class _Tasks(Mapping[str, Callable[..., SplitTask]]):
    """The builders by name, each imported at first use."""

    def __getitem__(self, name: str) -> Callable[..., SplitTask]:
        if name not in _NAMES:
            raise KeyError(name)
        builder: Callable[..., SplitTask] = getattr(import_module(f"sfl_flower.tasks.{name}"), name)
        return builder

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


TASKS: Mapping[str, Callable[..., SplitTask]] = _Tasks()
"""Task builders by name."""


def task_options(name: str) -> dict[str, Any]:
    """Return the options of a ready-made task and their defaults.

    Raises
    ------
    ConfigError
        There is no task of this name.
    """
    if name not in TASKS:
        raise ConfigError(f"Unknown task {name!r}{_hint(name, TASKS)}. Tasks: {', '.join(TASKS)}.")
    parameters = inspect.signature(TASKS[name]).parameters
    return {option: parameter.default for option, parameter in parameters.items()}


def read_task_options(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options given as text, as on the command line, into what the task's builder takes.

    Options that the task does not have, and those of a task that is not ready-made, stay as they
    are.

    Raises
    ------
    ConfigError
        A text is no value of the option's type.
    """
    kinds = get_type_hints(TASKS[name]) if name in TASKS else {}
    return {
        key: coerce(f"task.{key}", value, kinds[key])
        if isinstance(value, str) and key in kinds
        else value
        for key, value in values.items()
    }


def load_task(name: str, **options: Any) -> SplitTask:
    """Return a ready-made task. Its data are loaded when first asked for.

    Parameters
    ----------
    name : str
        A key of `TASKS`.
    **options
        What the task's builder takes; see `task_options`.

    Raises
    ------
    ConfigError
        The task or an option is unknown, or an option is out of its range.
    """
    legal = task_options(name)
    for option in options:
        if option not in legal:
            known = f"its options are {', '.join(legal)}" if legal else "it has no options"
            raise ConfigError(
                f"Task {name!r} has no option {option!r}{_hint(option, legal)}; {known}."
            )
    return TASKS[name](**options)


def _hint(word: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
