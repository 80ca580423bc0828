"""A mini-batch in micro-batches: a client holds at one time what a few samples need.

Without batch statistics a sample's outputs do not depend on the others.  So smashed data are those
of the whole mini-batch, its mean loss is the weighted sum of the micro-batches', and so are the
gradients: what follows is that of the whole mini-batch up to rounding.  Where all samples run
together (`Setup.micro_batch` is 0, or as many as there are) it is that to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.data import chunks
from sfl_flower.errors import DataError
from sfl_flower.node.node import Node
from sfl_flower.training.device import to_array

__all__ = ["MicroBatch", "batch_loss", "micro_batches", "rows_together", "run_half", "smashed"]


@dataclass(frozen=True)
class MicroBatch:
    """Samples of a mini-batch that run together.

    Attributes
    ----------
    rows : slice
        Which of the mini-batch.
    x, y : Tensor
        Their inputs [n, ...] and labels [n, ...].
    share : float
        Their part of the labels that count, by which their mean loss is weighted; 1 where all
        samples run together.
    draws : callable
        Gives the block in which their dropout, if it is active, depends on them alone.
    """

    rows: slice
    x: Tensor
    y: Tensor
    share: float
    draws: Callable[[], AbstractContextManager[None]]

    def weighted(self, loss: Tensor) -> Tensor:
        """Return what a mean loss of these samples adds to that of the mini-batch."""
        return loss if self.share == 1.0 else loss * self.share


def rows_together(node: Node, count: int) -> list[slice]:
    """Return which of `count` samples run together, in order."""
    return list(chunks(count, node.micro_batch or count))


def micro_batches(node: Node, round: int, step: int, x: Tensor, y: Tensor) -> Iterator[MicroBatch]:
    """Yield the micro-batches of a mini-batch.

    Parameters
    ----------
    node : Node
        The client, which says how many samples run together.
    round, step : int
        They name the mini-batch.
    x, y : Tensor
        Its inputs [n, ...] and labels [n, ...].
    """
    ignored, parts = node.task.ignore_label, rows_together(node, len(y))
    for rows in parts:
        share = 1.0
        if len(parts) > 1:
            share = _counted(y[rows], ignored) / max(1, _counted(y, ignored))
        draws = partial(node.draws, round, step, rows.start)
        yield MicroBatch(rows, x[rows], y[rows], share, draws)


def _counted(y: Tensor, ignored: int | None) -> int:
    return y.numel() if ignored is None else int((y != ignored).sum())


def smashed(node: Node, module: nn.Module, round: int, step: int, x: Tensor) -> np.ndarray:
    """Return z = f_c(x; θ_c) of a mini-batch, run without a graph; float32, shape [n, ...].

    The whole of z is outside torch's memory, as the message is.

    Raises
    ------
    DataError
        If the half gives another dtype.
    """
    joined = np.empty(0, np.float32)
    for rows in rows_together(node, len(x)):
        with torch.no_grad(), node.draws(round, step, rows.start):
            z = to_array(run_half(module, x[rows]))
        if not rows.start:
            joined = np.empty((len(x), *z.shape[1:]), np.float32)
        joined[rows] = z
    return joined


def run_half(module: nn.Module, x: Tensor) -> Tensor:
    """Return z = f_c(x; θ_c), shape [n, ...]; refuse what is not float32."""
    z: Tensor = module(x)
    if z.dtype != torch.float32:
        raise DataError(f"The client half gives {z.dtype}; smashed data must be float32.")
    return z.contiguous()


def batch_loss(
    node: Node,
    forward: Callable[[MicroBatch], Tensor],
    round: int,
    step: int,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Return the mean loss of a mini-batch, one element, float64 where it is of micro-batches.

    Parameters
    ----------
    node, round, step, x, y
        As for `micro_batches`.
    forward : callable
        Gives the model's outputs for a micro-batch.
    """
    found = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in micro_batches(node, round, step, x, y):
        with part.draws():
            output = forward(part)
            if part.rows.stop - part.rows.start == len(y):
                return node.task.loss(output, part.y)
            if part.share:  # else no label of these counts
                found = found + part.share * node.task.loss(output, part.y).double()
        del output
    return found
