"""The frozen client: the anchor forward, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfl_flower.data.identity import batch_digest
from sfl_flower.node.micro_batches import smashed
from sfl_flower.node.node import Node, metered
from sfl_flower.node.sync import bring_up
from sfl_flower.split import moving_statistics
from sfl_flower.training.device import to_array
from sfl_flower.training.modes import kept_buffers
from sfl_flower.wire import StaleReply, pack_state, unpack_state
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest

__all__ = ["Crossing", "anchor_forward", "forward"]

Crossing = Callable[[int, int, Sequence[Any], Tensor], None]
"""Told the mini-batch, the first sample of a micro-batch, what crosses to its rest, and its z."""


def forward(
    node: Node,
    request: ForwardRequest,
    met: list[str] | None = None,
    cross: Crossing | None = None,
    keep: Callable[[np.ndarray], None] | None = None,
) -> ForwardReply | StaleReply:
    """Sync, run the anchor forward of the round's mini-batches, return smashed data and labels.

    Digests of the mini-batches are appended to `met`, where it is given, what no probe moves is
    told to `cross`, and z as it was computed to `keep`.
    """
    before = bring_up(node, request.sync)
    if isinstance(before, StaleReply):
        return before
    with metered(request.meter, node.device) as usage, kept_buffers(node.half.module):
        own = moving_statistics(node.half.module) if request.statistics else {}
        for name, value in unpack_state(request.statistics, own).items():
            own[name].copy_(value)
        zs, ys = anchor_forward(node, request, met, cross)
        moved = {name: array.copy() for name, array in pack_state(own).items()}
    z = zs[0] if len(zs) == 1 else np.concatenate(zs)
    if keep is not None:
        keep(z)
    reply = ForwardReply(
        round=request.round,
        version=before,
        z=z,
        y=np.concatenate(ys),
        sizes=np.array([len(y) for y in ys], dtype=np.int64),
        usage=usage(),
        statistics=moved,
    )
    if request.known is None:
        return reply
    from sfl_flower.node.recall import in_brief  # few runs need it

    return in_brief(node, request, reply)


def anchor_forward(
    node: Node,
    request: ForwardRequest,
    met: list[str] | None,
    cross: Crossing | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Run the client half on each mini-batch at the anchor, without a graph.

    Running statistics go from one mini-batch to the next where the request brings them.  Digests of
    the mini-batches are appended to `met`, where it is given; `cross` as for `forward`.

    Returns
    -------
    zs : list of numpy.ndarray
        Smashed data, float32, shape [b, ...].
    ys : list of numpy.ndarray
        Labels, int64, shape [b, ...].
    """
    zs, ys = [], []
    parted = None if cross is None else node.half.parted
    for step in range(request.minibatches):
        x, y = node.batch(request.round, step, request.batch_size)
        if met is not None:
            met.append(batch_digest(x, y))
        module = node.half.module
        # Of a single mini-batch the caller puts them back.
        stay = request.statistics or request.minibatches == 1
        with nullcontext() if stay else kept_buffers(module):
            told = None if cross is None else partial(cross, step)
            zs.append(smashed(node, module, request.round, step, x, parted, told))
        ys.append(to_array(y.to(torch.int64)))
    return zs, ys
