"""Weights that clients send, held against bounds before they are averaged; and their mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import WireError
from sfl_flower.server.tally import Tally
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.task import SplitTask
from sfl_flower.training.device import device_of
from sfl_flower.training.modes import eval_mode
from sfl_flower.wire import unpack_state

__all__ = ["check_bounds", "finite_mean", "received_state", "smashed_shape"]

GROWTH = 1e4
"""How many times the server's largest value, or 1, a client's may be within a round."""
STATISTIC = 1e12
"""The same of statistics, which take the scale of the data in the first round."""
LONGEST = 2.0**53
"""Largest whole number in a buffer; means are taken in float64."""
ROWS = 8
"""Test samples on which a mean must give a finite loss."""


def smashed_shape(task: SplitTask, client: nn.Module) -> tuple[int, ...]:
    """Return the shape of smashed data, without the batch, of the task's own data."""
    x, _ = task.batch(task.samples("test"), slice(0, 2))
    with torch.no_grad(), eval_mode(client):
        return tuple(client(x.to(device_of(client))).shape[1:])


def received_state(
    packed: Mapping[str, np.ndarray], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Unpack weights as `unpack_state` and hold them against bounds.

    Parameters
    ----------
    packed : Mapping[str, numpy.ndarray]
        Flat arrays as they arrived.
    own : Mapping[str, Tensor]
        The server's own tensors of the same names.

    Raises
    ------
    WireError
        If they do not fit, or a value is none that training can have led to.
    """
    state = unpack_state(packed, own)
    check_bounds(state, own)
    return state


def check_bounds(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights that no round of training leads to.

    A value may be at most 1e4 times the server's largest of that tensor, or 1e4 where that is
    less than 1; the running statistics of BatchNorm, whose scale is that of the data, 1e12 times. A
    running variance is at least 0; whole numbers are so too, and at most 2**53.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        What a client sent, finite.
    own : Mapping[str, Tensor]
        The server's own tensors; names that it lacks are passed over.

    Raises
    ------
    WireError
        The message names the tensor and what it may be.
    """
    for name, value in state.items():
        if name not in own or not value.numel() or value.dtype == torch.bool:
            continue
        low, high = float(value.min()), float(value.max())
        if not value.is_floating_point():
            least, most = (0.0 if int(own[name].min()) >= 0 else -LONGEST), LONGEST
        else:
            statistic = name.rpartition(".")[2].startswith("running_")
            most = max(1.0, float(own[name].abs().max())) * (STATISTIC if statistic else GROWTH)
            least = 0.0 if name.endswith("running_var") else -most
        if not least <= low <= high <= most:
            worst = low if low < least else high
            raise WireError(
                f"'{name}' holds {worst:.3g}, which no round of training leads to: it must be in "
                f"[{least:.3g}, {most:.3g}]; lower the client's learning rate if this repeats."
            )


@contextmanager
def finite_mean(
    task: SplitTask, tally: Tally, client: nn.Module, server: nn.Module, *more: nn.Module
) -> Iterator[None]:
    """Run a block that loads means over clients; take them back if they ruin the model.

    They do where a value is not finite, or the whole model's loss on a few test samples is not and
    was before.

    Parameters
    ----------
    task : SplitTask
        Brings samples and loss.
    tally : Tally
        Is told of a mean that is taken back.
    client, server : nn.Module
        The halves.
    *more : nn.Module
        What else means are loaded into.
    """
    modules = (client, server, *more)
    before = [_copy(module) for module in modules]
    yield
    if _finite(modules) and _loss_is_finite(task, client, server):
        return
    after = [_copy(module) for module in modules]
    _load(modules, before)
    if _finite(modules) and not _loss_is_finite(task, client, server):
        _load(modules, after)  # another thing than the mean is wrong
        return
    tally.refuse_mean(
        "The mean over clients is not used, and the model is what it was: the loss of the whole "
        "model would not be finite. Lower the learning rates if this repeats."
    )


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in travelling_state(module).items()}


def _load(modules: tuple[nn.Module, ...], states: list[dict[str, Tensor]]) -> None:
    for module, state in zip(modules, states, strict=True):
        load_travelling(module, state)


def _finite(modules: tuple[nn.Module, ...]) -> bool:
    return all(
        bool(torch.isfinite(value).all())
        for module in modules
        for value in travelling_state(module).values()
    )


def _loss_is_finite(task: SplitTask, client: nn.Module, server: nn.Module) -> bool:
    x, y = task.batch(task.samples("test"), slice(0, ROWS))
    device = device_of(client)
    with torch.no_grad(), eval_mode(client, server):
        return math.isfinite(float(task.loss(server(client(x.to(device))), y.to(device))))
