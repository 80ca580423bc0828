"""MU-SplitFed on the client: three forwards, then one step along one direction."""

from __future__ import annotations

import torch

from sfl_flower.errors import TrainingError
from sfl_flower.node.micro_batches import smashed_at
from sfl_flower.node.node import Node, metered
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.training.device import to_array
from sfl_flower.wire import pack_state, unpack_state
from sfl_flower.wire.mu_splitfed import (
    MUForwardReply,
    MUForwardRequest,
    MUStepReply,
    MUStepRequest,
)
from sfl_flower.zo import Direction, Key, client_stream, run_key

__all__ = ["forward", "step"]

_WEIGHTS, _AT = "weights", "round"


def forward(node: Node, request: MUForwardRequest) -> MUForwardReply:
    """Run one mini-batch at θ_c, θ_c + μu and θ_c - μu, and remember θ_c."""
    half = node.half
    half.holds = ""
    load_travelling(half.module, unpack_state(request.weights, travelling_state(half.module)))
    with metered(request.meter, node.device) as usage, torch.no_grad():
        x, y = node.batch(request.round, 0, request.batch_size)
        direction = _direction(node, request)
        lengths = (0.0, request.probing.mu, -request.probing.mu)
        points = [(direction if length else None, length) for length in lengths]
        anchor, plus, minus = smashed_at(node, half, request.round, 0, x, points)
    node.store.put(_WEIGHTS, request.weights)
    node.store.put_text(_AT, {"round": request.round})
    return MUForwardReply(
        round=request.round,
        anchor=anchor,
        plus=plus,
        minus=minus,
        y=to_array(y.to(torch.int64)),
        usage=usage(),
    )


def step(node: Node, request: MUStepRequest) -> MUStepReply:
    """Step ``θ_c - lr · Δ/(2μ) · u`` from the weights of the round, and send what that gives."""
    packed = node.store.get(_WEIGHTS)
    if packed is None or node.store.get_text(_AT).get("round") != request.round:
        raise TrainingError(
            f"The client has no weights of round {request.round}; it joins the next one."
        )
    half = node.half
    half.holds = ""
    load_travelling(half.module, unpack_state(packed, travelling_state(half.module)))
    vector = half.trained
    with metered(request.meter, node.device) as usage:
        rate = request.lr * float(request.scalar[0]) / (2.0 * request.probing.mu)
        _direction(node, request).add_to(vector.anchor, vector.anchor, -rate)
        if not torch.isfinite(vector.anchor).all():
            raise TrainingError("The step gives weights that are not finite; lower client-lr.")
    node.store.drop(_WEIGHTS)
    node.store.drop(_AT)
    return MUStepReply(request.round, pack_state(travelling_state(half.module)), usage())


def _direction(node: Node, request: MUForwardRequest | MUStepRequest) -> Direction:
    run = run_key("mu_splitfed client", node.key)
    directions = node.half.trained.directions(run, request.probing.law)
    return directions.of(Key(request.round, 0, client_stream(node.partition)))
