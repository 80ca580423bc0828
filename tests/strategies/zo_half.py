"""What the tests of the methods of zeroth order on both sides share."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.calls import CallCounter
from sfl_flower.config import RunConfig
from sfl_flower.data import client_key, model_seed
from sfl_flower.node.node import HeldModule
from sfl_flower.server.forward_only import ForwardOnlyTrainer
from sfl_flower.zo import Directions, Key
from tests import tiny


def client_module(problem: Any) -> nn.Module:
    """Return the client half that the clients of this process run."""
    seed = model_seed(0)
    half: HeldModule = problem.memo(
        ("client half", seed, torch.device("cpu"), "as_built", False, problem.trained, ""),
        lambda: HeldModule(problem.build(seed).client),
    )
    return half.module


def server_counters(patch: pytest.MonkeyPatch) -> list[CallCounter]:
    """Return a list that gets a counter for every copy of a server half."""
    counters: list[CallCounter] = []
    own = ForwardOnlyTrainer.__init__

    def watched(half: ForwardOnlyTrainer, strategy: Any) -> None:
        own(half, strategy)
        counters.append(CallCounter(half.module).__enter__())

    patch.setattr(ForwardOnlyTrainer, "__init__", watched)
    return counters


def without_streams(patch: pytest.MonkeyPatch, *modules: Any) -> None:
    """Let all clients have the same directions."""
    for module in modules:
        patch.setattr(module, "client_stream", lambda partition: 0)
    patch.setattr(RunConfig, "client_key", lambda config, partition: client_key(config.seed, 0))


def flat(module: nn.Module) -> Tensor:
    """Return the parameters of a module as one float32 vector, in the canonical order."""
    named = dict(module.named_parameters())
    return torch.cat([named[name].detach().reshape(-1) for name in sorted(named)])


def run_at(module: nn.Module, theta: Tensor, x: Tensor) -> Tensor:
    """Run a module at flat parameters."""
    named = dict(module.named_parameters())
    views, end = {}, 0
    for name in sorted(named):
        start, end = end, end + named[name].numel()
        views[name] = theta[start:end].view(named[name].shape)
    found: Tensor = torch.func.functional_call(module, views, (x,))
    return found


def direction(run: bytes, size: int, step: int = 0, probe: int = 0, law: str = "rademacher") -> Any:
    """Return a direction of client 0 in round 1, float32, shape [size]."""
    return Directions(run, law, [(size,)]).of(Key(1, step, 1, probe)).values()


def double_server() -> nn.Module:
    """Return a model whose server half is trained in float64."""
    model = tiny.model()
    for name in ("hidden", "out"):
        model.get_submodule(name).double()
    return model


def server_norm() -> nn.Module:
    """Return a model with BatchNorm in the server half alone."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            act=nn.Tanh(),
            hidden=nn.Linear(tiny.CUT, 4),
            norm2=nn.BatchNorm1d(4),
            drop=nn.Dropout(0.5),
            out=nn.Linear(4, tiny.CLASSES),
        )
    )
