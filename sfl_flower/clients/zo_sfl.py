"""ZO-SFL on the client: two forwards per probe, then a step along the scalars that come back.

Between the two the client has no process: it keeps its weights, and the directions come again from
their keys.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from sfl_flower.errors import TrainingError
from sfl_flower.node.micro_batches import smashed_at
from sfl_flower.node.node import Node, metered
from sfl_flower.node.optimizer import OPTIMIZER
from sfl_flower.node.steps import forget, remember, restore
from sfl_flower.split import travelling_state
from sfl_flower.training.device import to_array
from sfl_flower.wire import pack_state
from sfl_flower.wire.zo_sfl import ZOStepReply, ZOStepRequest
from sfl_flower.zo import (
    Directions,
    Key,
    OptimizerSpec,
    ParameterVector,
    Walk,
    client_stream,
    run_key,
    step_coefficients,
    step_keys,
)

__all__ = ["step"]


def step(node: Node, request: ZOStepRequest) -> ZOStepReply:
    """Finish the last step with its scalars, begin the next with probes, or send the weights."""
    # Before the meter: where it is not built yet, the whole model is in memory for a moment.
    module, vector = node.half.module, node.half.trained
    with metered(request.meter, node.device) as usage:
        restore(node, request)
        if request.scalars is not None:
            _finish(node, vector, request, request.scalars)
        last = request.step == request.steps
        z, y = (None, None) if last else _probe(node, vector, request)
    packed = pack_state(travelling_state(module))
    if last:
        forget(node, request.keep_state)
    else:
        remember(node, request, packed)
    return ZOStepReply(
        round=request.round,
        step=request.step,
        samples=0 if y is None else len(y),
        z=z,
        y=y,
        weights=packed if last else {},
        usage=usage(),
    )


def _probe(
    node: Node, vector: ParameterVector, request: ZOStepRequest
) -> tuple[np.ndarray, np.ndarray]:
    """Return z at θ_c + μu_1, θ_c - μu_1, θ_c + μu_2, …, one after another, and the labels."""
    x, y = node.batch(request.round, request.step, request.batch_size)
    directions, mu = _directions(node, vector, request), request.probing.mu
    us = directions.of_keys(_keys(node, request, request.step))
    points = [(u, length) for u in us for length in (mu, -mu)]
    parts = smashed_at(node, node.half, request.round, request.step, x, points)
    return np.concatenate(parts), to_array(y.to(torch.int64))


def _finish(
    node: Node, vector: ParameterVector, request: ZOStepRequest, scalars: np.ndarray
) -> None:
    """Take the optimiser step of the step before along ``1/(2μP) Σ_p Δ_p u_p``."""
    theta, settings = vector.anchor, json.loads(request.optimizer)
    lr = float(settings.pop("lr"))
    kept = node.store.get(OPTIMIZER)
    walk = Walk(theta, OptimizerSpec(**settings), _directions(node, vector, request), kept)
    coefficients = step_coefficients(scalars, 2.0 * request.probing.mu)
    walk.step(_keys(node, request, request.step - 1), coefficients, lr)
    if not torch.isfinite(theta).all():
        raise TrainingError("The step gives weights that are not finite; lower client-lr.")
    if state := walk.state():
        node.store.put(OPTIMIZER, state)


def _directions(node: Node, vector: ParameterVector, request: ZOStepRequest) -> Directions:
    return vector.directions(run_key("zo_sfl client", node.key), request.probing.law)


def _keys(node: Node, request: ZOStepRequest, step: int) -> list[Key]:
    stream, probes = client_stream(node.partition), request.probing.probes
    return step_keys(request.round, step, stream, probes)
