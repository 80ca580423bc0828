"""Losses and metrics of class labels: one a sample, or one a position of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sfl_flower.errors import ConfigError

__all__ = [
    "IGNORED",
    "accuracy",
    "check_measures",
    "check_output",
    "cross_entropy",
    "token_accuracy",
]

IGNORED = -100
"""The label of a position that counts neither in the loss nor in a metric, as in torch."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of logits [N, C] and labels [N], or of [N, T, C] and [N, T]; shape [].

    Of labels [N, T] those that are `IGNORED` do not count: the mean is over all others.
    """
    if y.ndim > 1:
        kept = y != IGNORED  # first, for the logits of a vocabulary are large
        return functional.cross_entropy(logits[kept], y[kept])
    return functional.cross_entropy(logits, y)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 for each sample whose largest logit is its label, else 0.0; shape [N]."""
    return (logits.argmax(dim=-1) == y).float()


def token_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of a sample's labels that are the largest logit of their position; shape [N].

    Parameters
    ----------
    logits : Tensor
        Shape [N, T, C].
    y : Tensor
        Shape [N, T]; labels that are `IGNORED` do not count, and a sample without any other has 0.
    """
    kept = y != IGNORED
    right = torch.zeros_like(y, dtype=torch.float32)
    right[kept] = (logits[kept].argmax(dim=-1) == y[kept]).float()
    return right.sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def check_output(task: str, output: Any, y: Tensor, classes: int) -> None:
    """Refuse an output of a model that cross entropy over so many classes cannot take.

    Raises
    ------
    ConfigError
        If it is not [N, classes], or [N, T, classes] for labels [N, T].
    """
    wanted = [*y.shape, classes]
    if list(output.shape) != wanted:
        raise ConfigError(
            f"The model of task {task!r} gives an output of shape {list(output.shape)} for "
            f"{len(y)} samples; cross entropy over {classes} classes needs {wanted}."
        )


def check_measures(task: str, loss: Any, values: Mapping[str, Any], n: int) -> None:
    """Refuse what a task's loss and metrics gave for n samples.

    Raises
    ------
    ConfigError
        If the loss is no finite number, or a metric not one value a sample.
    """
    if not isinstance(loss, Tensor) or loss.shape != () or not torch.isfinite(loss):
        raise ConfigError(
            f"The loss of task {task!r} gives {loss}; it must be one finite number, the mean over "
            "the batch, as a tensor of shape []."
        )
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.shape != (n,):
            raise ConfigError(
                f"Metric {name!r} of task {task!r} must give one value a sample, a tensor of shape "
                f"[{n}] for {n} samples, not {value}."
            )
