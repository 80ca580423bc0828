"""What to say of words on the command line that no option takes."""

from __future__ import annotations

from collections.abc import Sequence

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.options import nearest

__all__ = ["say_leftovers"]

_WITH_SET = ("run", "compare")


def say_leftovers(given: Sequence[str], left: Sequence[str]) -> ConfigError:
    """Return the error for the first word that was left over.

    Settings of runs and methods go into ``--set KEY=VALUE``; who writes ``--probes 8`` or
    ``--set probes 8`` is told how it is written.

    Parameters
    ----------
    given : sequence of str
        The whole command line.
    left : sequence of str
        What the parser did not take, in order.
    """
    command, word = given[0], left[0]
    value = left[1] if len(left) > 1 and not left[1].startswith("-") else "VALUE"
    name, equals, own = word.lstrip("-").partition("=")
    key, value = name.replace("_", "-"), own if equals else value
    settings = _settings()
    if command not in _WITH_SET:
        return ConfigError(f"'sfl {command}' does not take '{word}'; see sfl {command} --help.")
    if word.startswith("-"):
        if key in settings or key.startswith("task."):
            return ConfigError(
                f"'{word}' is no option of 'sfl {command}' itself: write --set {key}={value}."
            )
        near = nearest(key, settings)
        hint = f"did you mean --set {near}={value}?" if near else ""
        return ConfigError(
            f"'{word}' is no option of 'sfl {command}'; {hint or f'see sfl {command} --help.'}"
        )
    place = list(given).index(word)
    if place > 1 and given[place - 2] == "--set" and "=" not in given[place - 1]:
        said = f"--set {given[place - 1]}={word}"
        return ConfigError(f"--set takes KEY=VALUE in one word: write {said}.")
    if equals:
        return ConfigError(f"'{word}' stands alone: write --set {word}.")
    return ConfigError(f"'sfl {command}' does not take '{word}'; see sfl {command} --help.")


def _settings() -> set[str]:
    """Return the names of all settings of runs and methods, as the command line writes them."""
    names = set(RunConfig.keys())
    for method in METHODS.values():
        names |= set(method.settings.__dataclass_fields__)
    return {name.replace("_", "-") for name in names}
