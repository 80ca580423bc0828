"""The methods: for each, its server side and the functions that answer its messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sfl_flower.clients import base, frozen, ho_sfl, splitfed
from sfl_flower.config import RunConfig, Settings, read_fields, unknown
from sfl_flower.strategies.base import SplitStrategy
from sfl_flower.strategies.frozen import Frozen
from sfl_flower.strategies.ho_sfl import HOSFL
from sfl_flower.strategies.splitfed import SplitFedV1, SplitFedV2
from sfl_flower.wire import AnchorRequest, ForwardRequest, ProbeRequest, StepRequest

__all__ = ["HANDLERS", "METHODS", "read_options"]

METHODS: Mapping[str, type[SplitStrategy]] = {
    strategy.name: strategy for strategy in (HOSFL, SplitFedV1, SplitFedV2, Frozen)
}

Handler = Callable[[base.Node, Any], Any]

HANDLERS: Mapping[type[Any], Handler] = {
    ForwardRequest: ho_sfl.forward,
    ProbeRequest: ho_sfl.probe,
    AnchorRequest: frozen.forward,
    StepRequest: splitfed.step,
}
"""Which function of a client answers which request."""


def read_options(options: Mapping[str, Any]) -> tuple[RunConfig, Settings, dict[str, Any]]:
    """Sort flat options into settings of the run, of its method and of its task.

    Parameters
    ----------
    options : Mapping[str, Any]
        Keys as on the command line; those of the task begin with ``task.``.

    Returns
    -------
    config : RunConfig
        Settings that every method shares.
    settings : Settings
        Settings of the method.
    task_options : dict[str, Any]
        Options of the task.

    Raises
    ------
    ConfigError
        If a key or a value is not legal.
    """
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}
    task: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name.startswith("task."):
            task[name.removeprefix("task.")] = value
        else:
            (shared if name in RunConfig.keys() else own)[name] = value
    method = shared.get("method", RunConfig.method)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    kind = METHODS[method].settings_type
    known = RunConfig.keys() | set(kind.__dataclass_fields__)
    for name in own:
        if name not in known:
            raise unknown(f"option of method '{method}'", name.replace("_", "-"), known)
    return RunConfig.read(shared), read_fields(kind, own, f"method '{method}'"), task
