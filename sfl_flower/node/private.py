"""Scalars that leave a client with privacy: each sample's bounded, then summed, then noised.

The noise is the operating system's: what derives from the run's seed the server can derive too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sfl_flower.node.micro_batches import MicroBatch
from sfl_flower.node.node import Node
from sfl_flower.node.postprocess import secret_generator
from sfl_flower.privacy.bounded import bounded_sum, gaussian
from sfl_flower.zo import Direction, ParameterVector, Probing, loss_scalars

__all__ = ["private_loss_scalars", "private_scalars"]


def private_scalars(parts: Sequence[Tensor], probing: Probing, batch_size: int) -> Tensor:
    """Return the scalars of a mini-batch from those of its samples.

    Parameters
    ----------
    parts : sequence of Tensor
        Of each micro-batch what each sample adds to the scalars of the mini-batch, in the order of
        its probes, float32, shape [P, n, numbers of a probe].
    probing : Probing
        Its clip and noise.
    batch_size : int
        B of the request; a mini-batch of fewer samples counts less, not its samples more.

    Returns
    -------
    Tensor
        float32, shape [P · numbers of a probe]: ``Σ_i min(1, S/‖v_i‖) v_i`` with S of
        `Probing.sensitivity`, and noise of standard deviation σ S on each.
    """
    each = torch.cat(list(parts), dim=1)
    count, limit = each.shape[1], probing.sensitivity(batch_size)
    terms = each.permute(1, 0, 2).reshape(count, -1).double().numpy() * (count / batch_size)
    found = bounded_sum(terms, limit)
    if probing.noise:
        found = gaussian(found, probing.noise * limit, secret_generator())
    return torch.from_numpy(found.astype(np.float32))


def private_loss_scalars(
    node: Node,
    forward: Callable[[MicroBatch], Tensor],
    batches: Sequence[MicroBatch],
    vector: ParameterVector,
    directions: Sequence[Direction],
    probing: Probing,
    batch_size: int,
) -> Tensor:
    """Return the scalars of a mini-batch of a local loss, float32, [P].

    Each sample counts the same, whatever it has of labels that count.

    Parameters
    ----------
    node : Node
        The client.
    forward : callable
        Gives the model's outputs for a micro-batch, shape [n, ...].
    batches : sequence of MicroBatch
        The mini-batch, from `micro_batches`.
    vector, directions, probing
        As for `loss_scalars`.
    batch_size : int
        As for `private_scalars`.
    """

    def losses() -> Tensor:
        found: list[Tensor] = []
        for part in batches:
            with part.draws():
                output = forward(part)
            found += [
                node.task.loss(output[row : row + 1], part.y[row : row + 1]).double().reshape(1)
                for row in range(len(part.y))
            ]
        return torch.cat(found)

    each = loss_scalars(losses, vector, directions, probing).reshape(probing.probes, -1, 1)
    return private_scalars([each / each.shape[1]], probing, batch_size)
