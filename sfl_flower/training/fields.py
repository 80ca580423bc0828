"""What a task is made of, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sfl_flower.errors import ConfigError, SflError

__all__ = ["called", "check_functions", "check_labels", "check_metrics"]


def check_labels(task: str, classes: Any, ignore: Any) -> None:
    """Refuse a number of classes below 1, or a label to ignore that is one of them.

    Raises
    ------
    ConfigError
        Either is so, or one of the two is no whole number.
    """
    for name, value in (("classes", classes), ("ignore_label", ignore)):
        if name == "ignore_label" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(
                f"Task {task!r} has {name}={value!r}, a {type(value).__name__}; it must be a whole "
                "number."
            )
    if classes < 1:
        raise ConfigError(f"Task {task!r} has classes={classes}; it must be at least 1.")
    if ignore is not None and 0 <= ignore < classes:
        raise ConfigError(
            f"Task {task!r} ignores label {ignore}, which is one of its classes 0 to "
            f"{classes - 1}; choose another, such as -100."
        )


def check_metrics(task: str, metrics: Any) -> None:
    """Refuse metrics that are no mapping from names, or that take the name of the loss.

    Raises
    ------
    ConfigError
        One of these.
    """
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise ConfigError(
            f"In task {task!r}, metrics is a {type(metrics).__name__}; it must be a dict from "
            'names to functions, such as {"accuracy": accuracy}.'
        )
    if "loss" in metrics:
        raise ConfigError(
            f"Task {task!r} calls a metric 'loss'; that name is taken, choose another."
        )


def check_functions(task: str, needed: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    """Refuse what should be a function and is not, such as a model instead of its builder.

    Parameters
    ----------
    task : str
        Name of the task.
    needed, optional : mapping of str to object
        By the name of the field; what is optional may be None.

    Raises
    ------
    ConfigError
        Naming the field.
    """
    given = {**needed, **{name: value for name, value in optional.items() if value is not None}}
    for name, value in given.items():
        built = name in ("model", "head") and isinstance(value, nn.Module)
        if not callable(value) or built:
            raise ConfigError(
                f"In task {task!r}, {name} is a {type(value).__name__}; it must be a function "
                "(lambda: ... makes one of a value)."
            )


def called(function: Callable[[], Any], what: str, kind: type[SflError]) -> Any:
    """Return what a user's function gives.

    Raises
    ------
    SflError
        Of this kind, naming the function as `what`, where it raises something else.
    """
    try:
        return function()
    except SflError:
        raise
    except Exception as error:
        raise kind(f"{what} fails: {type(error).__name__}: {error}") from error
