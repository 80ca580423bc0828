"""Checks of the options of ready-made tasks."""

from __future__ import annotations

from sfl_flower.errors import ConfigError

__all__ = ["whole_number"]


def whole_number(task: str, option: str, value: object, least: int, most: int) -> None:
    """Refuse what is not a whole number from `least` to `most`.

    Raises
    ------
    ConfigError
        It is not; the message names the task, the option and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"Option {option!r} of task {task!r} is {value!r}; it must be a whole number from "
            f"{least} to {most}."
        )
