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
from torch import Tensor, nn

from sfl_flower.errors import WireError
from sfl_flower.node.local_loss import LocalModel, Uploads, first_order_steps, local_model
from sfl_flower.node.micro_batches import smashed
from sfl_flower.node.node import Node, metered
from sfl_flower.node.optimizer import keep_optimizer, open_optimizer
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.training.device import to_array
from sfl_flower.wire import StaleReply, pack_state, unpack_state
from sfl_flower.wire.downlink import WEIGHTS, followed_state
from sfl_flower.wire.fsl_sage import (
    FSLSAGERequest,
    FSLSAGEStaleReply,
    FSLSAGEUploadRequest,
    FSLSAGEWarmUpRequest,
    head_digest,
)
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.wire.local import LocalReply

__all__ = ["local", "upload", "warm_up"]

_HEAD, _HELD_HEAD = "head", "held head"
_WEIGHTS, _ROUND = "sent ahead", "sent ahead in"


def upload(node: Node, request: FSLSAGEUploadRequest) -> ForwardReply | StaleReply:
    """Send the smashed data of step 0 and keep the weights for the steps."""
    model, ahead = local_model(node, request), request.weights
    if request.holds is not None:
        if (stood := _client_half(node, request, model, request.weights)) is not None:
            return StaleReply(request.round, stood)
        ahead = pack_state(_rest(model.client))
    x, y = node.batch(request.round, 0, request.batch_size)
    with metered(request.meter, node.device) as usage:
        z = smashed(node, model.client, request.round, 0, x)
    # As they came: what the forward did to running statistics, the steps do again.
    node.store.put(_WEIGHTS, ahead)
    node.store.put_text(_ROUND, {"round": request.round})
    labels, sizes = to_array(y.to(torch.int64)), np.array([len(y)], dtype=np.int64)
    return ForwardReply(request.round, -1, z, labels, sizes, usage())


def local(node: Node, request: FSLSAGERequest) -> LocalReply | StaleReply:
    """Take a round's local steps on the client half; the head stays as it is."""
    model = _model(node, request)
    if isinstance(model, StaleReply):
        return model
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


def warm_up(node: Node, request: FSLSAGEWarmUpRequest) -> LocalReply | StaleReply:
    """Take a round's local steps on client half and head, as CSE-FSL does."""
    model = local_model(node, request)
    if request.holds is not None:
        from sfl_flower.node.downlink import follow  # few runs need it

        if (stale := follow(node, request, model)) is not None:
            return stale
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


def _model(node: Node, request: FSLSAGERequest) -> LocalModel | StaleReply:
    """Return client half and head as a request names them, or what this client holds instead."""
    weights = request.weights or _sent_ahead(node, request.round)
    if request.holds is None:
        if weights is None:
            return _stale(node, request)
        model = local_model(node, replace(request, weights=weights, head_weights={}))
    else:
        model = local_model(node, request)
        if weights is None and _rest(model.client):
            return _stale(node, request)
        if (stood := _client_half(node, request, model, weights or {})) is not None:
            return _stale(node, request, client=stood)
    if (stood := _own_head(node, request, model)) is not None:
        return _stale(node, request, head=stood)
    return model


def _stale(
    node: Node, request: FSLSAGERequest, client: str | None = None, head: str | None = None
) -> FSLSAGEStaleReply:
    """Return what this client holds of client half and head, where it is not known yet."""
    if client is None and request.holds is not None:
        from sfl_flower.node.downlink import HELD, stands

        client = stands(node, HELD, request.head, ["client"])
    if head is None and request.head_downlink != WEIGHTS:
        from sfl_flower.node.downlink import stands

        head = stands(node, _HELD_HEAD, request.head, ["head"])
    elif head is None:
        head = _digest_of(node.store.recover(_HEAD))
    return FSLSAGEStaleReply(request.round, client or "", head)


def _client_half(
    node: Node,
    request: FSLSAGEUploadRequest | FSLSAGERequest,
    model: LocalModel,
    came: Mapping[str, np.ndarray],
) -> str | None:
    """Bring the client half to what a request names; what names it where that cannot be."""
    from sfl_flower.node.downlink import HELD, Coming, bring  # few runs need it

    coming = Coming(
        {"client": request.downlink},
        {"client": came},
        str(request.holds),
        request.base,
        request.changes,
    )
    return bring(node, HELD, {"client": model.client}, coming, request.head)


def _own_head(node: Node, request: FSLSAGERequest, model: LocalModel) -> str | None:
    """Load the head that a request names; what names the client's where that cannot be."""
    if request.head_downlink != WEIGHTS:
        from sfl_flower.node.downlink import Coming, bring  # few runs need it

        ways, came = {"head": request.head_downlink}, {"head": request.head_weights}
        coming = Coming(ways, came, request.digest, request.head_base, request.head_changes)
        return bring(node, _HELD_HEAD, {"head": model.head}, coming, request.head)
    kept: Mapping[str, np.ndarray] | None = request.head_weights
    if kept:
        if head_digest(kept) != request.digest:
            raise WireError("The auxiliary head does not match its digest.")
        node.store.put(_HEAD, kept)
    else:
        kept = node.store.recover(_HEAD)
        if kept is None or _digest_of(kept) != request.digest:
            return _digest_of(kept)
    load_travelling(model.head, unpack_state(kept, travelling_state(model.head)))
    return None


def _digest_of(head: Mapping[str, np.ndarray] | None) -> str:
    return "" if head is None else head_digest(head)


def _sent_ahead(node: Node, round: int) -> Mapping[str, np.ndarray] | None:
    """Return the weights that came ahead in this round, None where they are lost."""
    if node.store.get_text(_ROUND).get("round") != round:
        return None
    return node.store.get(_WEIGHTS)


def _rest(client: nn.Module) -> dict[str, Tensor]:
    """Return what changes do not tell of a client half."""
    told = followed_state(client)
    return {name: value for name, value in travelling_state(client).items() if name not in told}


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
