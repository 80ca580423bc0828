"""A mini-batch in micro-batches: a client holds at one time what a few samples need.

Without batch statistics a sample's outputs do not depend on the others.  So smashed data are those
of the whole mini-batch, its mean loss is the weighted sum of the micro-batches', and so are the
gradients: what follows is that of the whole mini-batch up to rounding.  Where all samples run
together (`Setup.micro_batch` is 0, or as many as there are) it is that to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.data import chunks, put_back, torch_states
from sfl_flower.errors import DataError
from sfl_flower.node.node import HeldModule, Node
from sfl_flower.training.device import to_array
from sfl_flower.zo import Direction

if TYPE_CHECKING:
    from sfl_flower.split.prefix import Parted, Values

__all__ = [
    "Draws",
    "MicroBatch",
    "batch_loss",
    "micro_batches",
    "plus_settled",
    "rows_together",
    "run_half",
    "settled",
    "smashed",
    "smashed_at",
]

T = TypeVar("T")
X = TypeVar("X")
Draws = Callable[[], AbstractContextManager[None]]
"""Gives the block in which what a forward draws depends on its samples alone."""


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
    draws: Draws

    def weighted(self, loss: Tensor) -> Tensor:
        """Return what a mean loss of these samples adds to that of the mini-batch."""
        return loss if self.share == 1.0 else loss * self.share


def rows_together(node: Node, count: int) -> list[slice]:
    """Return which of `count` samples run together, in order."""
    return list(chunks(count, node.micro_batch or count))


def micro_batches(node: Node, round: int, step: int, x: Tensor, y: Tensor) -> list[MicroBatch]:
    """Return the micro-batches of a mini-batch, parts of its tensors.

    Made once for all forwards of a mini-batch: where not every label counts, the host asks the
    device how many do.

    Parameters
    ----------
    node : Node
        The client, which says how many samples run together.
    round, step : int
        They name the mini-batch.
    x, y : Tensor
        Its inputs [n, ...] and labels [n, ...].
    """
    parts = rows_together(node, len(y))
    shares = [1.0] if len(parts) == 1 else _shares(y, parts, node.task.ignore_label)
    return [
        MicroBatch(rows, x[rows], y[rows], share, partial(node.draws, round, step, rows.start))
        for rows, share in zip(parts, shares, strict=True)
    ]


def _shares(y: Tensor, parts: Sequence[slice], ignored: int | None) -> list[float]:
    """Return which share of the labels that count each part has."""
    if ignored is None:
        counts = [y[rows].numel() for rows in parts]
    else:
        each = (y != ignored).reshape(len(y), -1).sum(dim=1).cpu().numpy()
        counts = [int(each[rows].sum()) for rows in parts]
    return [count / max(1, sum(counts)) for count in counts]


def smashed(
    node: Node,
    module: nn.Module,
    round: int,
    step: int,
    x: Tensor,
    parted: Parted | None = None,
    cross: Callable[[int, Values, Tensor], None] | None = None,
) -> np.ndarray:
    """Return z = f_c(x; θ_c) of a mini-batch, run without a graph; float32, shape [n, ...].

    The whole of z is outside torch's memory, as the message is.

    Parameters
    ----------
    node, module, round, step, x
        The client, its half, and which mini-batch.
    parted, cross : Parted, callable, optional
        The half in two parts, and what is told of each micro-batch its first sample, what crosses
        between the parts, and z.

    Raises
    ------
    DataError
        If the half gives another dtype.
    """
    joined = np.empty(0, np.float32)
    for rows in rows_together(node, len(x)):
        with torch.no_grad(), node.draws(round, step, rows.start):
            if parted is None or cross is None:
                z = run_half(module, x[rows])
            else:
                values = parted.first(x[rows])
                z = run_half(parted.rest, values)
                cross(rows.start, values, z)
                del values
        joined = _joined(joined, rows, to_array(z), len(x))
    return joined


def smashed_at(
    node: Node,
    half: HeldModule,
    round: int,
    step: int,
    x: Tensor,
    points: Sequence[tuple[Direction | None, float]],
) -> list[np.ndarray]:
    """Return `smashed` at several parameters, θ_c + length u each; what does not move runs once.

    Parameters
    ----------
    node, round, step, x
        As for `smashed`.
    half : HeldModule
        The client half.
    points : sequence of (Direction or None, float)
        u and length; None stands for θ_c itself.
    """

    def at(direction: Direction | None, length: float) -> AbstractContextManager[None]:
        return nullcontext() if direction is None else half.trained.probe(direction, length)

    found = [np.empty(0, np.float32)] * len(points)
    if half.parted is None:
        for number, point in enumerate(points):
            with at(*point):
                found[number] = smashed(node, half.module, round, step, x)
        return found
    for rows in rows_together(node, len(x)):
        run = settled(half.parted, x[rows], partial(node.draws, round, step, rows.start))
        for number, point in enumerate(points):
            with at(*point):
                z = to_array(run(_checked))
            found[number] = _joined(found[number], rows, z, len(x))
        del run  # or the next first part would run beside what this one gave
    return found


def settled(parted: Parted, x: Tensor, draws: Draws) -> Callable[[Callable[[Tensor], T]], T]:
    """Run what no probe moves, and return what runs the rest, and then something on its output.

    Parameters
    ----------
    parted : Parted
        A client half, or a whole model.
    x : Tensor
        Inputs that run together.
    draws : callable
        As of `MicroBatch`; every forward meets the same masks.
    """
    with torch.no_grad(), draws():
        values, drawn = parted.first(x), torch_states()

    def run(then: Callable[[Tensor], T]) -> T:
        with torch.no_grad(), draws():
            put_back(drawn)
            return then(parted.rest(values))

    return run


def _joined(joined: np.ndarray, rows: slice, z: np.ndarray, count: int) -> np.ndarray:
    """Put rows of smashed data where they belong; before the first there is no place for them."""
    if not rows.start:
        joined = np.empty((count, *z.shape[1:]), np.float32)
    joined[rows] = z
    return joined


def run_half(module: Callable[[X], Tensor], x: X) -> Tensor:
    """Return z = f_c(x; θ_c), shape [n, ...]; refuse what is not float32."""
    return _checked(module(x))


def _checked(z: Tensor) -> Tensor:
    if z.dtype != torch.float32:
        raise DataError(f"The client half gives {z.dtype}; smashed data must be float32.")
    return z.contiguous()


def batch_loss(
    node: Node,
    forward: Callable[[MicroBatch], Tensor],
    parts: Sequence[MicroBatch],
) -> Tensor:
    """Return the mean loss of a mini-batch, one element, float64 where it is of micro-batches.

    Parameters
    ----------
    node : Node
        The client.
    forward : callable
        Gives the model's outputs for a micro-batch.
    parts : sequence of MicroBatch
        The mini-batch, from `micro_batches`.
    """
    count = sum(len(part.x) for part in parts)
    found = torch.zeros((), dtype=torch.float64, device=parts[0].x.device)
    for part in parts:
        with part.draws():
            found = _plus_loss(node, part, count, forward(part), found)
    return found


def plus_settled(
    node: Node,
    part: MicroBatch,
    count: int,
    run: Callable[[Callable[[Tensor], Tensor]], Tensor],
    then: Callable[[Tensor], Tensor],
    found: Tensor,
) -> Tensor:
    """Return a sum of losses with that of a micro-batch at the parameters of the moment.

    Parameters
    ----------
    node : Node
        The client.
    part : MicroBatch
        The micro-batch.
    count : int
        Samples of the mini-batch; where they all run together it is the loss itself.
    run : callable
        From `settled`.
    then : callable
        Makes the model's outputs of what `run` gives.
    found : Tensor
        The sum of the micro-batches before, float64.
    """
    return _plus_loss(node, part, count, run(then), found)


def _plus_loss(node: Node, part: MicroBatch, count: int, output: Tensor, found: Tensor) -> Tensor:
    if len(part.x) == count:
        return node.task.loss(output, part.y)
    if not part.share:  # no label of these counts
        return found
    return found + part.share * node.task.loss(output, part.y).double()
