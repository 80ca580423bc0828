"""CSE-FSL on the client: first-order steps on the loss of an auxiliary head.

Per step one forward gives smashed data, the head's loss and both gradients (arXiv 2302.05599).
"""

from __future__ import annotations

from sfl_flower.node.local_loss import Uploads, first_order_steps, local_model
from sfl_flower.node.node import Node, metered
from sfl_flower.node.optimizer import keep_optimizer, open_optimizer
from sfl_flower.split import travelling_state
from sfl_flower.wire import StaleReply, pack_state
from sfl_flower.wire.local import LocalReply, LocalRequest

__all__ = ["local"]


def local(node: Node, request: LocalRequest) -> LocalReply | StaleReply:
    """Take a round's local steps on client half and head."""
    model = local_model(node, request)
    if request.holds is not None:
        from sfl_flower.node.downlink import follow  # few runs need it

        if (stale := follow(node, request, model)) is not None:
            return stale
    uploads = Uploads(request.upload_every)
    with metered(request.meter, node.device) as usage:
        optimizer = open_optimizer(node, model.parameters(), request.optimizer, request.keep_state)
        first_order_steps(node, request, model, optimizer, uploads)
    reply = uploads.reply(
        request,
        usage(),
        weights=pack_state(travelling_state(model.client)),
        head_weights=pack_state(travelling_state(model.head)),
    )
    if request.keep_state:
        keep_optimizer(node, optimizer)
    return reply
