"""Who holds which samples: the victims, the attacker, and the clients beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.data import Samples, generator
from sfl_flower.errors import ConfigError
from sfl_flower.task import SplitTask

__all__ = ["Scale", "Sides", "problem_of", "sides_of"]


@dataclass(frozen=True, eq=False)
class Scale:
    """Brings inputs to 0 .. 1, channel by channel, as they were among auxiliary samples.

    Attributes
    ----------
    low, span : Tensor
        Least value, and how far the largest is above it, of each channel: [1, C, 1, ...].
    """

    low: Tensor
    span: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Scale:
        """Return the scale of inputs [N, C, ...]."""
        flat = x.float().transpose(0, 1).flatten(1)
        shape = (1, -1, *[1] * (x.dim() - 2))
        low, high = flat.amin(1), flat.amax(1)
        span = torch.where(high > low, high - low, torch.ones_like(low))
        return cls(low.reshape(shape), span.reshape(shape))

    def __call__(self, x: Tensor) -> Tensor:
        """Return inputs in 0 .. 1; what is beyond the auxiliary samples' range is cut off."""
        return ((x.float() - self.low) / self.span).clamp(0, 1)

    def undo(self, shown: Tensor) -> Tensor:
        """Return inputs as the model takes them."""
        return shown * self.span + self.low


@dataclass(frozen=True, eq=False)
class Sides:
    """Inputs and labels of those who take part; no sample is on two sides.

    Attributes
    ----------
    x, y : Tensor
        The victims': test samples, as the model takes them, and their labels.
    auxiliary_x, auxiliary_y : Tensor
        The attacker's.
    observed_x : Tensor
        Of others, whose smashed data alone the attacker sees.
    clients : callable
        Gives the `Samples`, as stored, that clients hold: training samples that are not auxiliary.
    scale : Scale
        From inputs to 0 .. 1.
    """

    x: Tensor
    y: Tensor
    auxiliary_x: Tensor
    auxiliary_y: Tensor
    observed_x: Tensor
    clients: Callable[[], Samples]
    scale: Scale

    @property
    def tokens(self) -> bool:
        """Whether inputs are ids and not numbers."""
        return not self.x.is_floating_point()

    @property
    def guess(self) -> Tensor:
        """The mean of the auxiliary inputs in 0 .. 1, [1, ...]: what needs no smashed data."""
        return self.shown(self.auxiliary_x).float().mean(0, keepdim=True)

    def shown(self, x: Tensor) -> Tensor:
        """Return inputs in 0 .. 1; ids as they are."""
        return x if self.tokens else self.scale(x)


def sides_of(task: SplitTask, settings: AttackSettings) -> Sides:
    """Draw victims, auxiliary and observed samples.

    Victims are test samples. The others are training samples, whatever their partition.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    settings : AttackSettings
        How many of each, and the seed.

    Raises
    ------
    ConfigError
        If the task has too few samples, labels by position, or data of nodes' own.
    """
    if task.own_data:
        raise ConfigError(
            f"The training set of task '{task.name}' is different on every node; an attack needs "
            "one that auxiliary samples can be taken from: give a task whose train() takes nothing."
        )
    train, test = task.samples("train"), task.samples("test")
    if task.ignore_label is not None or train.y.ndim > 1:
        raise ConfigError(
            f"Task '{task.name}' has labels by position; attacks are for tasks with a label a "
            "sample."
        )
    wanted, others = settings.auxiliary + settings.observed, len(train)
    if settings.victims > len(test):
        raise ConfigError(
            f"victims is {settings.victims}; task '{task.name}' has {len(test)} test samples, "
            "take at most as many."
        )
    if wanted > others:
        raise ConfigError(
            f"auxiliary is {settings.auxiliary} and observed {settings.observed}; task "
            f"'{task.name}' has {others} training samples, take at most as many in all."
        )
    drawn = generator("attack samples", settings.seed)
    rows = np.sort(drawn.permutation(len(test))[: settings.victims])
    order = drawn.permutation(others)
    own, seen = np.sort(order[: settings.auxiliary]), np.sort(order[settings.auxiliary : wanted])
    x, y = task.batch(test, rows)
    auxiliary_x, auxiliary_y = task.batch(train, own)
    observed_x, _ = task.batch(train, seen)
    scale = Scale.of(auxiliary_x)
    held = partial(_held, task, np.sort(order[settings.auxiliary :]))
    return Sides(x, y, auxiliary_x, auxiliary_y, observed_x, held, scale)


def _held(task: SplitTask, rows: np.ndarray) -> Samples:
    return task.samples("train").take(rows)


def problem_of(task: SplitTask, sides: Sides, whole: nn.Module, at: str) -> SplitTask:
    """Return the task of a run that is hijacked: these weights, cut there, the clients' samples."""
    return replace(task, model=partial(copy.deepcopy, whole), cut=at, train=sides.clients, token="")
