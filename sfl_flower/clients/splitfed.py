"""SplitFed on the client: forward, receive λ, backpropagate, step.

Between the two halves of a step the client has no process and so no graph: it keeps weights and
optimiser state, and runs the forward of the last batch again when λ arrives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from sfl_flower.clients.base import Node, metered
from sfl_flower.contexts import kept_buffers
from sfl_flower.errors import TrainingError, WireError
from sfl_flower.optim import load_slots, make_optimizer, slots
from sfl_flower.wire import StepReply, StepRequest, pack_state, unpack_state

__all__ = ["step"]

_WEIGHTS, _OPTIMIZER, _AT = "weights", "optimizer", "step"


def step(node: Node, request: StepRequest) -> StepReply:
    """Finish the last step with λ, begin the next with a forward, or send the weights."""
    with metered(request.meter) as peak:
        module = _restore(node, request)
        if request.lam is not None:
            _finish(node, module, request)
        last = request.step == request.steps
        z = y = None
        if not last:
            x, labels = node.batch(request.round, request.step, request.batch_size)
            # The forward is run again with a graph: same masks, and buffers move once a batch.
            draws = node.draws(request.round, request.step)
            with torch.no_grad(), kept_buffers(module), draws:
                z = module(x).contiguous().numpy()
            y = labels.to(torch.int64).numpy()
    packed = pack_state(module.state_dict())
    node.store.put(_WEIGHTS, packed)
    node.store.put_text(_AT, {"round": request.round, "step": request.step})
    return StepReply(
        round=request.round,
        step=request.step,
        samples=0 if y is None else len(y),
        z=z,
        y=y,
        weights=packed if last else {},
        peak_bytes=peak(),
    )


def _restore(node: Node, request: StepRequest) -> nn.Module:
    half = node.half
    half.holds = ""
    packed: Mapping[str, np.ndarray] | None = request.weights
    if request.step > 0:
        at = node.store.get_text(_AT)
        if (at.get("round"), at.get("step")) != (request.round, request.step - 1):
            raise TrainingError(
                f"The client stands at step {at.get('step')} of round {at.get('round')} and cannot "
                f"go on with step {request.step} of round {request.round}."
            )
        packed = node.store.get(_WEIGHTS)
    elif not request.keep_state:
        node.store.drop(_OPTIMIZER)
    if packed is None:
        raise TrainingError("The client lost its weights within the round; it joins the next one.")
    half.module.load_state_dict(unpack_state(packed, half.module.state_dict()))
    return half.module


def _finish(node: Node, module: nn.Module, request: StepRequest) -> None:
    x, _ = node.batch(request.round, request.step - 1, request.batch_size)
    lam = torch.from_numpy(np.array(request.lam))
    with torch.enable_grad(), node.draws(request.round, request.step - 1):
        z = module(x)
        if z.shape != lam.shape:
            raise WireError(
                f"λ has shape {tuple(lam.shape)}, the batch gives z of {tuple(z.shape)}."
            )
        if not z.requires_grad:  # nothing is trainable
            return
        z.backward(lam)
    optimizer = make_optimizer(module.parameters(), **json.loads(request.optimizer))
    kept = node.store.get(_OPTIMIZER)
    if kept is not None:
        load_slots(optimizer, {name: torch.from_numpy(slot) for name, slot in kept.items()})
    optimizer.step()
    optimizer.zero_grad()
    if state := slots(optimizer):
        node.store.put(_OPTIMIZER, {name: slot.numpy() for name, slot in state.items()})
