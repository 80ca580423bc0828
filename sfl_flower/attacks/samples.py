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


@dataclass(frozen=True, eq=False)
class Sides:
    """Inputs and labels of those who take part.

    No victim is on another side, and no auxiliary sample with clients; samples that are observed
    are some of the clients'.

    Attributes
    ----------
    x, y : Tensor
        The victims': test samples, as the model takes them, and their labels.
    auxiliary_x, auxiliary_y : Tensor
        The attacker's.
    observed_x, observed_y : Tensor
        Of others, whose smashed data and labels alone the attacker sees.
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
    observed_y: Tensor
    clients: Callable[[], Samples]
    scale: Scale

    @property
    def tokens(self) -> bool:
        """Whether inputs are ids [N, T] and not numbers."""
        return self.x.dim() == 2 and self.x.dtype in (torch.int32, torch.int64)

    @property
    def guess(self) -> Tensor:
        """The mean of the auxiliary inputs in 0 .. 1, [1, ...]: what needs no smashed data."""
        return self.shown(self.auxiliary_x).float().mean(0, keepdim=True)

    @property
    def class_guess(self) -> Tensor:
        """For each victim the mean of the auxiliary inputs of its label, in 0 .. 1, [N, ...].

        Of all auxiliary inputs where there is none of the label.
        """
        shown = self.shown(self.auxiliary_x).float()
        found = self.guess.repeat(len(self.y), *[1] * (shown.dim() - 1))
        for label in self.auxiliary_y.unique():
            found[self.y == label] = shown[self.auxiliary_y == label].mean(0)
        return found

    def shown(self, x: Tensor) -> Tensor:
        """Return inputs in 0 .. 1, with one channel where they are [N, H, W]; ids as they are."""
        return x if self.tokens else self.scale(_channels(x))


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
        If the task has too few samples, labels by position, data of nodes' own, or inputs that are
        neither numbers nor ids.
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
    observed_x, observed_y = task.batch(train, seen)
    if x.is_complex() or x.dim() < 2:
        raise ConfigError(
            f"Inputs of task '{task.name}' are {str(x.dtype).removeprefix('torch.')} of shape "
            f"{list(x.shape)}; an attack takes real numbers [N, ...] of two dimensions or more, or "
            "ids [N, T] of int32 or int64: give the task a transform that makes such inputs."
        )
    scale = Scale.of(_channels(auxiliary_x))
    held = partial(_held, task, np.sort(order[settings.auxiliary :]))
    return Sides(x, y, auxiliary_x, auxiliary_y, observed_x, observed_y, held, scale)


def _channels(x: Tensor) -> Tensor:
    """Return pictures of one channel for pictures without."""
    return x[:, None] if x.dim() == 3 else x


def _held(task: SplitTask, rows: np.ndarray) -> Samples:
    return task.samples("train").take(rows)


def problem_of(task: SplitTask, sides: Sides, whole: nn.Module, at: str) -> SplitTask:
    """Return the task of a run that is hijacked: these weights, cut there, the clients' samples."""
    return replace(task, model=partial(copy.deepcopy, whole), cut=at, train=sides.clients, token="")
