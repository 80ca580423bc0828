"""DeComFL on the client: catch up, walk zeroth-order steps, report the scalars, go back.

Per step ``v_p = L(θ + μ u_p) - L(θ)`` over the whole model, and
``θ <- θ - lr / (P μ) Σ_p v_p u_p`` along directions that the round's clients share (arXiv
2405.15861).  The walk is the client's own; what everyone applies is the mean, so afterwards θ is
again what it was at the start of the round.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sfl_flower.errors import TrainingError
from sfl_flower.node.micro_batches import (
    MicroBatch,
    batch_loss,
    micro_batches,
    plus_settled,
    settled,
)
from sfl_flower.node.node import Node, metered
from sfl_flower.node.sync import bring_up, journal_key
from sfl_flower.wire import StaleReply
from sfl_flower.wire.decomfl import WalkReply, WalkRequest
from sfl_flower.zo import SHARED_STREAM, Direction, Sweep, loss_scalars

__all__ = ["walk"]


def walk(node: Node, request: WalkRequest) -> WalkReply | StaleReply:
    """Sync, take the local steps, return their scalars, float32, shape [steps, probes]."""
    half = node.whole
    before = bring_up(node, request.sync, half)
    if isinstance(before, StaleReply):
        return before
    vector, probing = half.trained, request.probing
    directions = vector.directions(journal_key(node), probing.law)
    rows, losses, samples = [], [], 0
    with metered(request.meter, node.device) as usage:
        start = vector.anchor.clone()
        try:
            for step in range(request.steps):
                us = directions.of_step(request.round, step, SHARED_STREAM, probing.probes)
                scalars, loss, count = _probe(node, request, step, us)
                for direction, scalar in zip(us, scalars.tolist(), strict=True):
                    scale = -request.lr * scalar / (probing.probes * probing.unit)
                    direction.add_to(vector.anchor, vector.anchor, scale)
                rows.append(scalars)
                losses.append(loss)
                samples += count
        finally:
            vector.load(start)
    return WalkReply(
        round=request.round,
        version=before,
        scalars=torch.stack(rows).numpy(),
        samples=samples,
        loss=sum(losses) / len(losses),
        usage=usage(),
    )


def _probe(
    node: Node, request: WalkRequest, step: int, directions: list[Direction]
) -> tuple[Tensor, float, int]:
    """Return scalars [P], loss and number of samples of one mini-batch; no loss with privacy."""
    half = node.whole
    x, y = node.batch(request.round, step, request.batch_size)
    batches = micro_batches(node, request.round, step, x, y)
    seen: list[Tensor] = []
    probing, zero = request.probing, torch.zeros((), dtype=torch.float64, device=x.device)

    def forward(part: MicroBatch) -> Tensor:
        output: Tensor = half.module(part.x)
        return output

    if probing.clip:
        from sfl_flower.node.private import private_loss_scalars  # few runs need it

        own = (half.trained, directions, probing, request.batch_size)
        return private_loss_scalars(node, forward, batches, *own), 0.0, len(y)

    def loss() -> Tensor:
        value = batch_loss(node, forward, batches)
        seen.append(value)
        return value

    if half.parted is None or not Sweep.fits(probing):
        scalars = loss_scalars(loss, half.trained, directions, probing)
    else:
        sweep = Sweep(half.trained, directions, probing, zero)
        for part in batches:
            run = settled(half.parted, part.x, part.draws)
            sweep.add(partial(plus_settled, node, part, len(y), run, lambda output: output))
            del run  # or the next first part would run beside what this one gave
        scalars, seen = sweep.scalars(), sweep.sums
    if not torch.isfinite(scalars).all():
        raise TrainingError(
            f"The scalars of local step {step} are not finite, so the client is left out of the "
            "round; lower client-lr or mu if this repeats."
        )
    # Without a forward at θ itself the mean over all is as good.
    losses = torch.stack([value.double().reshape(()) for value in seen]).cpu().tolist()
    loss_here = losses[0] if probing.rule.anchored else sum(losses) / len(losses)
    return scalars, loss_here, len(y)
