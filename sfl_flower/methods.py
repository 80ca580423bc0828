"""The methods: for each, its server side and the functions that answer its messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sfl_flower.clients import (
    cse_fsl,
    decomfl,
    fedavg,
    frozen,
    fsl_sage,
    heron,
    ho_sfl,
    mu_splitfed,
    splitfed,
    zo_sfl,
)
from sfl_flower.config import RunConfig, Settings, read_fields, unknown
from sfl_flower.node.node import Node
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.strategies.cse_fsl import CSEFSL
from sfl_flower.strategies.decomfl import DeComFL
from sfl_flower.strategies.fedavg import FedAvg
from sfl_flower.strategies.frozen import Frozen
from sfl_flower.strategies.fsl_sage import FSLSAGE
from sfl_flower.strategies.heron import HERON
from sfl_flower.strategies.ho_sfl import HOSFL
from sfl_flower.strategies.mu_splitfed import MUSplitFed
from sfl_flower.strategies.splitfed import SplitFedV1, SplitFedV2
from sfl_flower.strategies.zo_sfl import ZOSFL
from sfl_flower.wire import (
    AnchorRequest,
    CSEFSLRequest,
    ForwardRequest,
    FullRequest,
    HERONRequest,
    ProbeRequest,
    StepRequest,
    WalkRequest,
)
from sfl_flower.wire.fsl_sage import FSLSAGERequest, FSLSAGEUploadRequest, FSLSAGEWarmUpRequest
from sfl_flower.wire.mu_splitfed import MUForwardRequest, MUStepRequest
from sfl_flower.wire.zo_sfl import ZOStepRequest

__all__ = ["HANDLERS", "METHODS", "read_options"]

METHODS: Mapping[str, type[SplitStrategy]] = {
    strategy.name: strategy
    for strategy in (
        HOSFL,
        HERON,
        SplitFedV1,
        SplitFedV2,
        CSEFSL,
        FSLSAGE,
        FedAvg,
        MUSplitFed,
        ZOSFL,
        DeComFL,
        Frozen,
    )
}

Handler = Callable[[Node, Any], Any]

HANDLERS: Mapping[type[Any], Handler] = {
    ForwardRequest: ho_sfl.forward,
    ProbeRequest: ho_sfl.probe,
    AnchorRequest: frozen.forward,
    StepRequest: splitfed.step,
    WalkRequest: decomfl.walk,
    FullRequest: fedavg.train,
    CSEFSLRequest: cse_fsl.local,
    HERONRequest: heron.local,
    FSLSAGEUploadRequest: fsl_sage.upload,
    FSLSAGERequest: fsl_sage.local,
    FSLSAGEWarmUpRequest: fsl_sage.warm_up,
    MUForwardRequest: mu_splitfed.forward,
    MUStepRequest: mu_splitfed.step,
    ZOStepRequest: zo_sfl.step,
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
        If a key or a value is not legal, or values do not go together.
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
    config, settings = RunConfig.read(shared), read_fields(kind, own, f"method '{method}'")
    METHODS[method].check_options(config, settings)
    return config, settings, task
