"""The U-shaped client: smashed data without labels, then its own tail, then HO-SFL's probes.

Labels stay here: the loss is computed from the server's features, and what goes back is its
gradient at them and at the tail.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from sfl_flower.clients import ho_sfl
from sfl_flower.clients.ho_sfl import probe, same_batches
from sfl_flower.errors import TrainingError, WireError
from sfl_flower.node.node import Node, metered
from sfl_flower.node.tail import Found, backprop, forwards
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.training.modes import kept_buffers
from sfl_flower.wire import StaleReply, pack_state, unpack_state
from sfl_flower.wire.ho_sfl import ForwardRequest
from sfl_flower.wire.u_shaped import TailReply, TailRequest, UnlabelledReply

__all__ = ["forward", "probe", "tail"]


def forward(node: Node, request: ForwardRequest) -> UnlabelledReply | StaleReply:
    """Run the anchor forward and keep z for the probes of the same round; send no labels."""
    reply = ho_sfl.forward(node, request)
    if isinstance(reply, StaleReply):
        return reply
    return UnlabelledReply(
        reply.round, reply.version, reply.z, reply.sizes, reply.usage, reply.statistics
    )


def tail(node: Node, request: TailRequest) -> TailReply:
    """Answer features with gradients, of every mini-batch at the same tail.

    Raises
    ------
    TrainingError
        If a loss or a gradient is not finite.
    WireError
        If the features are not those of the round's mini-batches.
    """
    module = node.memo(("own tail", request.tail), lambda: node.new_head(request.tail))
    own = travelling_state(module)
    load_travelling(module, unpack_state(request.head_weights, own))
    by = partial(forwards, probes=request.probes) if request.order == "zeroth" else backprop
    found, start = list[Found](), 0
    with metered(request.meter, node.device) as usage, kept_buffers(module):
        for step in range(request.minibatches):
            x, y = node.batch(request.round, step, request.batch_size)
            same_batches(node, request.round, request.minibatches, step, x, y)
            part = slice(start, start + len(y))
            start = part.stop
            if len(request.features) < start:
                break
            found.append(by(node, module, request.features[part], y, (request.round, step)))
    if start != len(request.features):
        raise WireError(
            f"Features are for {len(request.features)} samples, the batches hold {start}."
        )
    gradients = np.concatenate([rows for _, rows, _ in found])
    losses = np.array([loss for loss, _, _ in found], np.float64)
    if not (np.isfinite(losses).all() and np.isfinite(gradients).all()):
        raise TrainingError(
            "The loss of the tail or its gradient is not finite; lower server-lr if this repeats."
        )
    named = {f"{at}.{name}": g for at, each in enumerate(found) for name, g in each[2].items()}
    return TailReply(request.round, start, gradients, pack_state(named), losses, usage())
