"""HO-SFL on the client: an anchor forward, then probes projected on the cut gradient.

``v_p = <λ, f_c(x; θ_c + μ u_p) - z>`` (arXiv 2603.14773, section 3): forwards only, on the batch of
the anchor, and nothing but scalars to send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sfl_flower.clients.frozen import forward as anchor
from sfl_flower.data.identity import batch_digest
from sfl_flower.errors import WireError
from sfl_flower.node.crossing import keep_crossing, kept_crossing
from sfl_flower.node.micro_batches import rows_together, run_half, smashed
from sfl_flower.node.node import Node, metered
from sfl_flower.node.nopeek import Leak, mean_dcor
from sfl_flower.node.sync import journal_key, stand_still, standing
from sfl_flower.node.together import together
from sfl_flower.training.device import read_only
from sfl_flower.training.modes import kept_buffers
from sfl_flower.wire import StaleReply
from sfl_flower.wire.ho_sfl import (
    ForwardReply,
    ForwardRequest,
    PipelinedReply,
    PipelinedRequest,
    ProbeReply,
    ProbeRequest,
)
from sfl_flower.wire.probing import along
from sfl_flower.wire.secure import (
    SecureForwardReply,
    SecureForwardRequest,
    SecureProbeReply,
    SecureProbeRequest,
    UnmaskReply,
    UnmaskRequest,
)
from sfl_flower.zo import (
    Direction,
    ParameterVector,
    Probing,
    Sweep,
    loss_scalars,
    surrogate_scalars,
    totals,
)

if TYPE_CHECKING:
    from sfl_flower.split.prefix import Parted, Values

__all__ = [
    "forward",
    "pipelined",
    "probe",
    "same_batches",
    "secure_forward",
    "secure_probe",
    "unmask",
]

_ANCHOR, _ROUND = "anchor", "anchor round"


def forward(node: Node, request: ForwardRequest) -> ForwardReply | StaleReply:
    """Run the anchor forward and keep z for the probes of the same round."""
    met: list[str] = []
    of = request.minibatches * len(rows_together(node, request.batch_size))
    cross = partial(keep_crossing, node, request.round, of)
    reply = anchor(node, request, met, cross, lambda z: node.store.put(_ANCHOR, {"z": z}))
    if isinstance(reply, ForwardReply):
        node.store.put_text(_ROUND, {"round": request.round, "batches": " ".join(met)})
    return reply


def probe(node: Node, request: ProbeRequest) -> ProbeReply | StaleReply:
    """Answer with the scalars of every mini-batch, float32, [minibatches, probes and a guide].

    Where channels are told apart, each probe gives that of the whole and one of each channel.
    """
    before = stand_still(node)
    if isinstance(before, StaleReply):
        return before
    text = node.store.get_text(_ROUND)
    if text.get("round") != request.round:
        return StaleReply(before)
    vector, kept, probing = node.half.trained, _kept(node), request.probing
    directions = vector.directions(journal_key(node), probing.law)
    if request.seal is not None:
        from sfl_flower.zo.seal import sealed  # few runs have any

        directions = sealed(directions, request.seal)
    more = along(directions, request.guide)
    met, replica = _met(text, request.minibatches), standing(node)
    rows, leaks, start = list[Tensor](), list[Tensor | None](), 0
    # Running statistics are the anchor's alone.
    with metered(request.meter, node.device) as usage, kept_buffers(node.half.module):
        for step in range(request.minibatches):
            x, y = node.batch(request.round, step, request.batch_size)
            if met:
                node.same_batch(request.round, batch_digest(x, y), met[step])
            part = slice(start, start + len(y))
            start = part.stop
            if kept is None:
                z = smashed(node, node.half.module, request.round, step, x)
            else:
                z = kept[part]
            lam = request.lam[part]
            if lam.shape != z.shape:
                raise WireError(f"λ has shape {lam.shape}, the batch gives {z.shape}.")
            if probing.channel >= lam.ndim:
                raise WireError(
                    f"Channels are asked for in dimension {probing.channel} of smashed data of "
                    f"shape {z.shape}."
                )
            us = directions.of_step(request.round, step, request.stream, probing.probes)
            us = replica.in_cone(us) + more
            crossed = partial(kept_crossing, node, request.round, step)
            own = (x, z, lam, crossed)
            if probing.nopeek:
                found, leak = _with_term(node, vector, us, probing, *own)
                leaks.append(leak)
            else:
                found = _scalars(node, vector, us, probing, *own, request.batch_size)
            rows.append(found)
    if start != request.lam.shape[0]:
        raise WireError(f"λ is for {request.lam.shape[0]} samples, the batches hold {start}.")
    node.store.drop(_ANCHOR)
    return ProbeReply(
        round=request.round,
        scalars=torch.stack(rows).numpy(),
        samples=start,
        usage=usage(),
        dcor=mean_dcor(probing.nopeek, leaks),
    )


def pipelined(node: Node, request: PipelinedRequest) -> PipelinedReply | StaleReply:
    """Probe where the client stands, for the round before; then sync, and run this one's anchor."""
    told = probe(node, request.probes())
    if isinstance(told, StaleReply):
        return told
    reply = forward(node, request)
    if isinstance(reply, StaleReply):
        return reply
    usage = reply.usage.beside(told.usage)
    own = vars(replace(reply, usage=usage))
    return PipelinedReply(**own, scalars=told.scalars, dcor=told.dcor)


def secure_forward(node: Node, request: SecureForwardRequest) -> SecureForwardReply | StaleReply:
    """Run the anchor forward, and deal shares of what the scalars will be masked with."""
    from sfl_flower.node.secure import deal  # few runs need it

    reply = forward(node, request)
    if isinstance(reply, StaleReply):
        return reply
    return SecureForwardReply(**vars(reply), **deal(node, request))


def secure_probe(node: Node, request: SecureProbeRequest) -> SecureProbeReply | StaleReply:
    """Probe, and answer with whole numbers under masks."""
    from sfl_flower.node.secure import mask

    told = probe(node, request)
    if isinstance(told, StaleReply):
        return told
    numbers = mask(node, request, told.scalars, told.samples)
    return SecureProbeReply(told.round, numbers, told.samples, told.usage)


def unmask(node: Node, request: UnmaskRequest) -> UnmaskReply:
    """Reveal shares of what has to come off the sum."""
    from sfl_flower.node.secure import reveal

    return UnmaskReply(request.round, reveal(node, request))


def _scalars(
    node: Node,
    vector: ParameterVector,
    us: list[Direction],
    probing: Probing,
    x: Tensor,
    z: np.ndarray,
    lam: np.ndarray,
    crossed: Callable[[slice], Values | None],
    batch_size: int,
) -> Tensor:
    """Return the scalars of a mini-batch, float32, [P] or [P (1 + C)].

    `z` and `lam` fit it; `crossed` gives what was kept of the anchor's first part, by rows;
    `batch_size` is that of the request.
    """
    module, parts = node.half.module, rows_together(node, len(x))
    parted = node.half.parted if Sweep.fits(probing) else None

    def apart(rows: slice, of_samples: bool = False) -> Tensor:
        """Return the scalars of rows that run together, or those of each."""
        run, own = partial(run_half, module), x[rows]
        anchor, weight = (read_only(array[rows], node.device) for array in (z, lam))
        at_once = together(node, "half", module, vector, probing, run, lambda part: part, own)
        forward = partial(run, own) if parted is None else _rest(parted, own, crossed(rows))
        return surrogate_scalars(
            forward, vector, us, probing, anchor, weight, at_once, of_samples=of_samples
        )

    if probing.clip:
        from sfl_flower.node.private import private_scalars  # few runs need it

        numbers = 1 + lam.shape[probing.channel] if probing.channel else 1
        each = [apart(rows, True).reshape(len(us), -1, numbers) for rows in parts]
        return private_scalars(each, probing, batch_size)
    if len(parts) == 1:
        return apart(parts[0])

    def of(rows: slice) -> tuple[Tensor, Tensor]:
        """Return z and λ of some rows."""
        return read_only(z[rows], node.device), read_only(lam[rows], node.device)

    def gained(told: tuple[Tensor, Tensor], run: Callable[[], Tensor], found: Tensor) -> Tensor:
        """Return what was found and ``<λ, f_c(x; θ) - z>`` of some rows at the θ of the moment."""
        gain = run() - told[0]
        return found + totals(gain.mul_(told[1]), probing.channel)

    def change() -> Tensor:
        """Return ``<λ, f_c(x; θ) - z>`` at the θ of the moment, float64: 0 at the anchor."""
        found = still
        for rows in parts:
            found = gained(of(rows), partial(run_half, module, x[rows]), found)
        return found

    channels = lam.shape[probing.channel] if probing.channel else 0
    still = torch.zeros(1 + channels, dtype=torch.float64, device=node.device)
    if parted is None or not Sweep.fits(probing):
        return loss_scalars(change, vector, us, probing, still)
    sweep = Sweep(vector, us, probing, still, given=True)
    for rows in parts:
        sweep.add(partial(gained, of(rows), _rest(parted, x[rows], crossed(rows))))
    return sweep.scalars(still)


def _with_term(
    node: Node,
    vector: ParameterVector,
    us: list[Direction],
    probing: Probing,
    x: Tensor,
    z: np.ndarray,
    lam: np.ndarray,
    crossed: Callable[[slice], Values | None],
) -> tuple[Tensor, Tensor | None]:
    """Return the scalars of a mini-batch with NoPeek's term, float32, [P], and its correlation.

    Parameters as for `_scalars`. Micro-batches run one after another for each probe, for the term
    is of all of them.
    """
    module, parts = node.half.module, rows_together(node, len(x))
    leak, parted = Leak(probing.nopeek, x), node.half.parted
    anchor, weight = (read_only(array, node.device) for array in (z, lam))
    still = leak.of(anchor)
    forward: Callable[[], Tensor]
    if parted is not None and Sweep.fits(probing) and len(parts) == 1:
        forward = _rest(parted, x, crossed(parts[0]))
    else:

        def forward() -> Tensor:
            found = [run_half(module, x[rows]) for rows in parts]
            return found[0] if len(found) == 1 else torch.cat(found)

    def gained(out: Tensor) -> Tensor:
        """Return by how much ``<λ, f_c> + α dcor(x, f_c)`` is more than at the anchor, float64."""
        return totals((out - anchor).mul_(weight), 0) + (leak.of(out) - still)

    run = partial(run_half, module)
    at_once = together(node, "half", module, vector, probing, run, gained, x)
    zero = torch.zeros(1, dtype=torch.float64, device=node.device)
    found = loss_scalars(lambda: gained(forward()), vector, us, probing, zero, at_once)
    return found, leak.found


def _rest(parted: Parted, x: Tensor, crossed: Values | None) -> Callable[[], Tensor]:
    """Return what runs the rest of a half on some inputs, or on what crosses to it of them."""
    return partial(run_half, parted.rest, parted.first(x) if crossed is None else crossed)


def same_batches(node: Node, round: int, count: int, step: int, x: Tensor, y: Tensor) -> None:
    """Refuse a mini-batch that is another than at the round's anchor, where that is known.

    Parameters
    ----------
    node : Node
        The client.
    round, count, step : int
        The round, its mini-batches, and which of them it is.
    x, y : Tensor
        The mini-batch.

    Raises
    ------
    DataError
        It is another one.
    """
    text = node.store.get_text(_ROUND)
    if text.get("round") == round and (met := _met(text, count)):
        node.same_batch(round, batch_digest(x, y), met[step])


def _met(text: Mapping[str, int | str], count: int) -> list[str]:
    """Return digests of the mini-batches of the round's anchor, none where they were lost."""
    met = str(text.get("batches", "")).split()
    return met if len(met) == count else []


def _kept(node: Node) -> np.ndarray | None:
    """Return z of the round's anchor, None where it was lost and must be run again."""
    return (node.store.get(_ANCHOR) or {}).get("z")
