"""Losses and metrics of class labels: one a sample, or one a position of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sfl_flower.errors import ConfigError

__all__ = [
    "IGNORED",
    "accuracy",
    "binary_accuracy",
    "check_measures",
    "check_outputs",
    "cross_entropy",
    "diverged",
    "token_accuracy",
]

_DIVERGED = 10.0
IGNORED = -100
"""The label of a position that counts neither in the loss nor in a metric, as in torch."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of logits [N, C] and labels [N], or of [N, T, C] and [N, T]; shape [].

    Of labels [N, T] those that are `IGNORED` do not count: the mean is over all others.
    """
    if y.ndim > 1:
        if logits.device.type != "cpu":  # to choose rows there would wait for their number
            return functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED)
        kept = y != IGNORED  # first, for the logits of a vocabulary are large
        return functional.cross_entropy(logits[kept], y[kept])
    return functional.cross_entropy(logits, y)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 for each sample whose largest logit is its label, else 0.0; shape [N]."""
    return (logits.argmax(dim=-1) == y).float()


def binary_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 for each sample whose one logit, above 0 for class 1, is on the side of its label.

    Parameters
    ----------
    logits : Tensor
        Shape [N] or [N, 1].
    y : Tensor
        Labels 0 and 1, shape [N].
    """
    return ((logits.reshape(len(y)) > 0) == (y > 0)).float()


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


def check_outputs(
    task: str,
    output: Any,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    classes: int,
) -> None:
    """Refuse outputs of a model that the task's loss or metrics would take for something else.

    Raises
    ------
    ConfigError
        Cross entropy gets outputs that are not [N, classes] (or [N, T, classes] for labels
        [N, T]), `accuracy` a single output, or the loss is a sum over the batch.
    """
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    wanted = [*y.shape, classes]
    if loss is cross_entropy:
        if shape != wanted:
            raise ConfigError(
                f"The model of task {task!r} gives an output of shape {shape} for {len(y)} "
                f"samples; cross entropy over {classes} classes needs {wanted}."
            )
    if not isinstance(output, Tensor):
        return
    alone = output.shape[-1:] == (1,) or output.ndim == 1
    names = [name for name, metric in metrics.items() if metric in (accuracy, token_accuracy)]
    if classes > 1 and alone and names:
        raise ConfigError(
            f"The model of task {task!r} gives one output a sample, shape {shape}, and metric "
            f"{names[0]!r} takes the largest of several, so it would always say class 0; give "
            '`metrics={"accuracy": binary_accuracy}` (from sfl_flower.task), or a model with '
            f"{classes} outputs."
        )
    try:
        once, twice = float(loss(output, y)), float(loss(*(torch.cat([v, v]) for v in (output, y))))
    except Exception:  # a loss for batches of one size only
        return
    if once and abs(twice / once - 2.0) < 1e-3:
        raise ConfigError(
            f"The loss of task {task!r} is a sum over the batch: a batch given twice has twice the "
            f'loss, {once:.4g} and {twice:.4g}; it must be the mean (reduction="mean"), for '
            "learning rates and averages are of means."
        )


def diverged(found: Mapping[str, float], before: float) -> str:
    """Return what to say of a loss far above that before training, empty where it is not.

    Parameters
    ----------
    found : mapping of str to float
        What was measured now; empty where nothing was.
    before : float
        Loss before the first round; 0 where it is not known. Only one above 0 is compared with.
    """
    now = found.get("loss", 0.0)
    if not before > 0 or now <= _DIVERGED * before:
        return ""
    return (
        f"The loss on the test set is {now:.4g}, {now / before:.0f} times what it was before "
        f"training ({before:.4g}): training has diverged. Lower server-lr or client-lr, or clip."
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
