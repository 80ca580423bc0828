"""Mean loss and metrics of a model over a set of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sfl_flower.training.device import CPU

__all__ = ["mean_measures", "rows_at_once"]

_LOGITS = 2**26
"""Most outputs of one forward of an evaluation: 256 MiB, of a vocabulary's logits for one."""

Measure = Callable[[Tensor, Tensor], Tensor]


def rows_at_once(batch_size: int, outputs: int) -> int:
    """Return how many samples one forward takes, where each has so many outputs; at least 1."""
    return max(1, min(batch_size, _LOGITS // outputs))


def mean_measures(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Measure,
    metrics: Mapping[str, Measure],
    ignore: int | None,
) -> dict[str, float]:
    """Return mean loss and metrics, without a graph.

    Parameters
    ----------
    forward : callable
        From inputs [n, ...] to outputs, on whatever device.
    batches : iterable of (Tensor, Tensor)
        Inputs and labels.
    loss : callable
        The mean loss of a batch.
    metrics : mapping of str to callable
        One value a sample each, shape [n].
    ignore : int, optional
        The label that does not count.

    Returns
    -------
    dict of str to float
        ``"loss"``, the mean over all labels that count, and the mean over samples of each metric.
    """
    samples = labels = 0
    totals = dict.fromkeys(("loss", *metrics), 0.0)
    with torch.no_grad():
        for x, y in batches:
            output = forward(x)
            y = y.to(_device(output))
            counted = y.numel() if ignore is None else int((y != ignore).sum())
            labels += counted
            samples += len(y)
            totals["loss"] += float(loss(output, y)) * counted
            for name, metric in metrics.items():
                totals[name] += float(metric(output, y).sum(dtype=torch.float64))
    shared = {name: total / samples for name, total in totals.items()}
    return {**shared, "loss": totals["loss"] / labels}


def _device(output: Any) -> torch.device:
    """Return where outputs are; a model with a loss of its own may give them in a dict, say."""
    tensors = (part for part in tree_leaves(output) if isinstance(part, Tensor))
    return next((part.device for part in tensors), CPU)
