"""FedAvg on the client: train the whole model for some steps, send it back."""

from __future__ import annotations

import torch

from sfl_flower.node.micro_batches import micro_batches
from sfl_flower.node.node import Node, metered
from sfl_flower.node.optimizer import keep_optimizer, open_optimizer
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.wire import pack_state, unpack_state
from sfl_flower.wire.fedavg import FullReply, FullRequest

__all__ = ["train"]


def train(node: Node, request: FullRequest) -> FullReply:
    """Take a round's local steps, one mini-batch each, from the weights of the request."""
    half = node.whole
    half.holds = ""
    with metered(request.meter, node.device) as usage:
        module = half.module
        load_travelling(module, unpack_state(request.weights, travelling_state(module)))
        optimizer = open_optimizer(node, module.parameters(), request.optimizer, request.keep_state)
        samples, losses = 0, []
        for step in range(request.steps):
            x, y = node.batch(request.round, step, request.batch_size)
            optimizer.zero_grad()
            found = 0.0
            for part in micro_batches(node, request.round, step, x, y):
                if not part.share:  # no label of these counts
                    continue
                with torch.enable_grad(), part.draws():
                    loss = part.weighted(node.task.loss(module(part.x), part.y))
                    loss.backward()
                found += float(loss.detach())
            optimizer.step()
            losses.append(found)
            samples += len(y)
        optimizer.zero_grad()
    reply = FullReply(
        round=request.round,
        samples=samples,
        loss=sum(losses) / len(losses),
        weights=pack_state(travelling_state(module)),
        usage=usage(),
    )
    if request.keep_state:
        keep_optimizer(node, optimizer)
    return reply
