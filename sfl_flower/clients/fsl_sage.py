"""FSL-SAGE on the client: first-order steps along cut gradients that a frozen head estimates.

Per step one forward gives smashed data z, the head its input gradient ``∇_z ℓ(f_a(z), y)``, and
that is backpropagated through the client half (arXiv 2505.23182).  The head is the server's; the
client keeps a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from sfl_flower.errors import WireError
from sfl_flower.node.local_loss import Uploads, first_order_steps, local_model
from sfl_flower.node.micro_batches import smashed
from sfl_flower.node.node import Node, metered
from sfl_flower.node.optimizer import keep_optimizer, open_optimizer
from sfl_flower.split import travelling_state
from sfl_flower.training.device import to_array
from sfl_flower.wire import StaleReply, pack_state
from sfl_flower.wire.fsl_sage import (
    FSLSAGERequest,
    FSLSAGEUploadRequest,
    FSLSAGEWarmUpRequest,
    head_digest,
)
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.wire.local import LocalReply

__all__ = ["local", "upload", "warm_up"]

_HEAD, _WEIGHTS, _ROUND = "head", "sent ahead", "sent ahead in"


def upload(node: Node, request: FSLSAGEUploadRequest) -> ForwardReply:
    """Send the smashed data of step 0 and keep the weights for the steps."""
    client = local_model(node, request).client
    x, y = node.batch(request.round, 0, request.batch_size)
    with metered(request.meter, node.device) as usage:
        z = smashed(node, client, request.round, 0, x)
    # As they came: what the forward did to running statistics, the steps do again.
    node.store.put(_WEIGHTS, request.weights)
    node.store.put_text(_ROUND, {"round": request.round})
    labels, sizes = to_array(y.to(torch.int64)), np.array([len(y)], dtype=np.int64)
    return ForwardReply(request.round, -1, z, labels, sizes, usage())


def local(node: Node, request: FSLSAGERequest) -> LocalReply | StaleReply:
    """Take a round's local steps on the client half; the head stays as it is."""
    head, weights = _head(node, request), request.weights or _sent_ahead(node, request.round)
    if head is None or weights is None:
        return StaleReply(request.round, "")
    model = local_model(node, replace(request, weights=weights, head_weights=head))
    uploads = Uploads(request.upload_every, first=1 if request.ahead else 0)
    with metered(request.meter, node.device) as usage, _frozen(model.head):
        optimizer = open_optimizer(
            node, model.client.parameters(), request.optimizer, request.keep_state
        )
        # Through a head without trained parameters: z with its estimate.
        first_order_steps(node, request, model, optimizer, uploads)
    reply = uploads.reply(request, usage(), weights=pack_state(travelling_state(model.client)))
    if request.keep_state:
        keep_optimizer(node, optimizer)
    node.store.drop(_WEIGHTS)
    return reply


def warm_up(node: Node, request: FSLSAGEWarmUpRequest) -> LocalReply:
    """Take a round's local steps on client half and head, as CSE-FSL does."""
    model = local_model(node, request)
    uploads = Uploads(request.upload_every)
    with metered(request.meter, node.device) as usage:
        # Anew, and not kept: the optimiser that lasts is that of the client half alone.
        optimizer = open_optimizer(node, model.parameters(), request.optimizer, keep=False)
        first_order_steps(node, request, model, optimizer, uploads)
    return uploads.reply(
        request,
        usage(),
        weights=pack_state(travelling_state(model.client)),
        head_weights=pack_state(travelling_state(model.head)),
    )


def _head(node: Node, request: FSLSAGERequest) -> Mapping[str, np.ndarray] | None:
    """Return the head that a request names, None where this client does not hold it."""
    if request.head_weights:
        if head_digest(request.head_weights) != request.digest:
            raise WireError("The auxiliary head does not match its digest.")
        node.store.put(_HEAD, request.head_weights)
        return request.head_weights
    kept = node.store.get(_HEAD)
    return kept if kept is not None and head_digest(kept) == request.digest else None


def _sent_ahead(node: Node, round: int) -> Mapping[str, np.ndarray] | None:
    """Return the weights that came ahead in this round, None where they are lost."""
    if node.store.get_text(_ROUND).get("round") != round:
        return None
    return node.store.get(_WEIGHTS)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Run a block in which a module has no trained parameter, so backprop keeps less of it."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
