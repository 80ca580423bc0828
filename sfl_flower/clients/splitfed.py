"""SplitFed on the client: forward, receive λ, backpropagate, step.

Between the two halves of a step the client has no process and so no graph: it keeps weights and
optimiser state, and runs the forward of the last batch again when λ arrives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sfl_flower.data.identity import batch_digest
from sfl_flower.errors import WireError
from sfl_flower.node.micro_batches import micro_batches, smashed
from sfl_flower.node.node import Node, metered
from sfl_flower.node.optimizer import keep_optimizer, open_optimizer
from sfl_flower.node.steps import met_before, remember, restore
from sfl_flower.split import travelling_state
from sfl_flower.training.device import to_array, to_tensor
from sfl_flower.training.modes import kept_buffers
from sfl_flower.wire import pack_state
from sfl_flower.wire.splitfed import StepReply, StepRequest

__all__ = ["step"]


def step(node: Node, request: StepRequest) -> StepReply:
    """Finish the last step with λ, begin the next with a forward, or send the weights."""
    # Before the meter: where it is not built yet, the whole model is in memory for a moment.
    module = node.half.module
    with metered(request.meter, node.device) as usage:
        restore(node, request)
        if request.lam is not None:
            _finish(node, module, request)
        last = request.step == request.steps
        z, y, batch = None, None, ""
        if not last:
            x, labels = node.batch(request.round, request.step, request.batch_size)
            batch = batch_digest(x, labels)
            # The forward is run again with a graph: same masks, and buffers move once a batch.
            with kept_buffers(module):
                z = smashed(node, module, request.round, request.step, x)
            y = to_array(labels.to(torch.int64))
    packed = pack_state(travelling_state(module))
    remember(node, request, packed, batch)
    return StepReply(
        round=request.round,
        step=request.step,
        samples=0 if y is None else len(y),
        z=z,
        y=y,
        weights=packed if last else {},
        usage=usage(),
    )


def _finish(node: Node, module: nn.Module, request: StepRequest) -> None:
    x, y = node.batch(request.round, request.step - 1, request.batch_size)
    node.same_batch(request.round, batch_digest(x, y), met_before(node))
    lam = np.asarray(request.lam)
    for part in micro_batches(node, request.round, request.step - 1, x, y):
        with torch.enable_grad(), part.draws():
            z = module(part.x)
            if (len(x), *z.shape[1:]) != lam.shape:
                raise WireError(
                    f"λ has shape {lam.shape}, the batch gives z of {(len(x), *z.shape[1:])}."
                )
            if not z.requires_grad:  # nothing is trainable
                return
            # λ is of the mean over the whole mini-batch, so the gradients add up to its own.
            z.backward(to_tensor(lam[part.rows], node.device))
        del z
    optimizer = open_optimizer(node, module.parameters(), request.optimizer)
    optimizer.step()
    optimizer.zero_grad()
    keep_optimizer(node, optimizer)
