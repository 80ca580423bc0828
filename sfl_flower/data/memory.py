"""What this process has loaded or built for a task.

A task travels to the simulation's workers with every message and is rebuilt there each time, so
nothing heavy may live in it. Heavy things live here, once a process, under the task's token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from threading import RLock
from typing import Any, TypeVar

__all__ = ["forget", "held", "lend", "remember"]

T = TypeVar("T")

_TASKS = 8  # a notebook that keeps redefining its task must not fill the memory
_MEMORY: OrderedDict[str, dict[Hashable, Any]] = OrderedDict()
_LOCK = RLock()


def remember(token: str, key: Hashable, make: Callable[[], T]) -> T:
    """Return what `make` gave the first time this process asked for (token, key).

    Parameters
    ----------
    token : str
        Names the task. The tasks used least recently are dropped beyond eight.
    key : hashable
        Names the thing within the task.
    make : callable
        Makes the thing; called at most once for each (token, key) kept. What it raises is passed on
        and nothing is kept.
    """
    with _LOCK:
        kept = _MEMORY.setdefault(token, {})
        _MEMORY.move_to_end(token)
        while len(_MEMORY) > _TASKS:
            _MEMORY.popitem(last=False)
        if key not in kept:
            kept[key] = make()
        value: T = kept[key]
        return value


def held(token: str, key: Hashable) -> Any:
    """Return what this process keeps under (token, key), None for nothing."""
    with _LOCK:
        return _MEMORY.get(token, {}).get(key)


def lend(token: str, other: str, names: Collection[str]) -> None:
    """Keep for another task as well what is kept for one, under these names.

    Parameters
    ----------
    token, other : str
        Name the task that has it, and the one that gets it.
    names : collection of str
        Keys, or what keys that are tuples begin with.
    """
    with _LOCK:
        kept = {
            key: value
            for key, value in _MEMORY.get(token, {}).items()
            if (key[0] if isinstance(key, tuple) else key) in names
        }
        _MEMORY.setdefault(other, {}).update(kept)


def forget(token: str) -> None:
    """Drop everything kept for a task."""
    with _LOCK:
        _MEMORY.pop(token, None)
