"""HO-SFL on the client: an anchor forward, then probes projected on the cut gradient.

``v_p = <λ, f_c(x; θ_c + μ u_p) - z>`` (arXiv 2603.14773, section 3): forwards only, on the batch of
the anchor, and nothing but scalars to send.
"""

from __future__ import annotations

import torch

from sfl_flower.clients.base import Node, metered
from sfl_flower.clients.frozen import forward as anchor
from sfl_flower.clients.frozen import run_half
from sfl_flower.clients.sync import bring_up, journal_key
from sfl_flower.errors import WireError
from sfl_flower.wire import ForwardReply, ForwardRequest, ProbeReply, ProbeRequest, StaleReply, Sync
from sfl_flower.zo import Direction, Key, surrogate_scalars

__all__ = ["forward", "probe"]

_ANCHOR = "anchor"


def forward(node: Node, request: ForwardRequest) -> ForwardReply | StaleReply:
    """Run the anchor forward and keep z for the probes of the same round."""
    reply = anchor(node, request)
    if isinstance(reply, ForwardReply):
        node.store.put(_ANCHOR, {"z": reply.z})
        node.store.put_text("anchor round", {"round": request.round})
    return reply


def probe(node: Node, request: ProbeRequest) -> ProbeReply | StaleReply:
    """Answer with the scalars of every mini-batch, float32, shape [minibatches, probes]."""
    here = Sync("none", request.version, request.digest, request.version, request.digest)
    before = bring_up(node, here)
    if isinstance(before, StaleReply):
        return before
    run_key = journal_key(node)
    vector = node.half.vector
    kept = node.store.get(_ANCHOR)
    if node.store.get_text("anchor round").get("round") != request.round:
        kept = None
    rows, samples, start = [], 0, 0
    with metered(request.meter) as peak:
        for step in range(request.minibatches):
            x, y = node.batch(request.round, step, request.batch_size)
            stop = start + len(y)
            lam = request.lam[start:stop]
            z = torch.from_numpy(kept["z"][start:stop].copy()) if kept else None
            if z is None:
                with torch.no_grad():
                    z = run_half(node, x, request.eval_mode)
            if lam.shape != tuple(z.shape):
                raise WireError(f"λ has shape {lam.shape}, the batch gives z of {tuple(z.shape)}.")
            directions = [
                Direction(
                    run_key,
                    Key(request.round, step, request.stream, index),
                    vector.size,
                    request.law,
                )
                for index in range(request.probes)
            ]
            rows.append(
                surrogate_scalars(
                    lambda x=x: run_half(node, x, request.eval_mode),
                    vector,
                    directions,
                    request.mu,
                    z,
                    torch.from_numpy(lam.copy()),
                    request.central,
                )
            )
            samples += len(y)
            start = stop
    if start != request.lam.shape[0]:
        raise WireError(f"λ is for {request.lam.shape[0]} samples, the batches hold {start}.")
    node.store.drop(_ANCHOR)
    return ProbeReply(
        round=request.round,
        version=before,
        scalars=torch.stack(rows).numpy(),
        samples=samples,
        peak_bytes=peak(),
    )
