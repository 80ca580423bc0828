"""HERON-SFL on the client: two-point steps on the loss of an auxiliary head, forwards only.

Per step an anchor forward gives smashed data and L(θ_l); then ``v_p = L(θ_l + μ u_p) - L(θ_l)``
with client half and head moved together, and θ_l takes a replayable step along
``1/(P μ) Σ_p v_p u_p`` (arXiv 2601.09076, equations 2 and 6).  A guide of the server is one more
direction of every step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import JournalError
from sfl_flower.node.local_loss import LocalModel, Uploads, local_model, settings_of
from sfl_flower.node.micro_batches import (
    MicroBatch,
    batch_loss,
    micro_batches,
    plus_settled,
    settled,
)
from sfl_flower.node.node import Node, metered
from sfl_flower.node.nopeek import Leak, mean_dcor
from sfl_flower.node.together import together
from sfl_flower.split import Parted, buffers_of, called_layers, parted, travelling_state
from sfl_flower.training.modes import kept_buffers
from sfl_flower.wire import StaleReply, pack_state
from sfl_flower.wire.heron import WALKS, HERONRequest
from sfl_flower.wire.local import LocalReply
from sfl_flower.wire.probing import along
from sfl_flower.zo import (
    Direction,
    Directions,
    Guide,
    Key,
    OptimizerSpec,
    ParameterVector,
    Probing,
    StepRule,
    Sweep,
    Walk,
    client_stream,
    loss_scalars,
    run_key,
    step_keys,
    trained_names,
)

if TYPE_CHECKING:
    from sfl_flower.zo.estimator import Together

__all__ = ["local"]

_OPTIMIZER = "walk"


def local(node: Node, request: HERONRequest) -> LocalReply | StaleReply:
    """Take a round's local steps on client half and head, or on the client half alone."""
    model = local_model(node, request, request.trains)
    vector = _laid_out(node, model, request)
    settings = settings_of(request)
    lr = settings.pop("lr")
    probing = request.probing
    key = run_key("heron", node.key)
    directions = vector.directions(key, probing.law)
    more, stream = along(directions, request.guide), client_stream(node.partition)
    rule = StepRule(
        probing.unit, request.clip_norm, request.scale, request.walk, request.guide_rest
    )
    spec = OptimizerSpec(**settings, cone=request.cone)
    if request.holds is not None:
        from sfl_flower.node.downlink import follow  # few runs need it
        from sfl_flower.zo.walks import Walking

        walking = Walking(probing.law, vector.shapes, spec, rule, probing.probes)
        if (stale := follow(node, request, model, walking)) is not None:
            return stale
    state = node.store.get(_OPTIMIZER) if request.keep_state else None
    uploads = Uploads(request.upload_every)
    rows, leaks = list[np.ndarray](), list[Tensor | None]()
    taken = np.zeros(request.steps, dtype=np.uint8)
    with metered(request.meter, node.device) as usage:
        walk = Walk(vector.anchor, spec, directions, state)
        for step in range(request.steps):
            keys = step_keys(request.round, step, stream, probing.probes)
            us = walk.in_cone(directions.of_keys(keys)) + more
            scalars, leak = _probe(node, model, vector, us, request, step, uploads)
            terms = _terms(rule, scalars, keys, directions, request.guide)
            # A step whose scalars are none that can be is skipped, here and where it is rebuilt.
            rows.append(np.zeros_like(scalars) if terms is None else scalars)
            if terms is not None:
                taken[step] = 1
                leaks.append(leak)
                walk.step(keys, terms[0], lr, terms[1])
    with_scalars = request.uplink == "scalars"
    client = travelling_state(model.client)
    reply = uploads.reply(
        request,
        usage(),
        weights=pack_state(buffers_of(model.client, client) if with_scalars else client),
        head_weights=_head(model.head, request),
        scalars=np.stack(rows) if with_scalars else None,
        taken=taken,
        dcor=mean_dcor(probing.nopeek, leaks),
    )
    # Last: a state kept in a file does not go back when the round fails.
    if request.keep_state and (kept := walk.state()):
        node.store.put(_OPTIMIZER, kept)
    return reply


def _terms(
    rule: StepRule,
    scalars: np.ndarray,
    keys: list[Key],
    directions: Directions,
    guide: Guide | None,
) -> tuple[np.ndarray, Guide | None] | None:
    """Return what a step goes along, None where its scalars are not finite or beyond a guide's."""
    if not np.isfinite(scalars).all():
        return None
    try:
        return rule.terms(scalars, keys, directions, guide)
    except JournalError:
        return None


def _probe(
    node: Node,
    model: LocalModel,
    vector: ParameterVector,
    directions: list[Direction],
    request: HERONRequest,
    step: int,
    uploads: Uploads,
) -> tuple[np.ndarray, Tensor | None]:
    """Run the anchor and the probes of one step.

    Returns
    -------
    scalars : numpy.ndarray
        float32, one a direction.
    leak : Tensor or None
        The distance correlation at the anchor, where it is measured.
    """
    what = ("local model", request.head, request.trains)
    parts = node.memo(("parted", what), lambda: parted(model.client, vector.parameters))
    private = bool(request.probing.clip)
    x, y = node.batch(request.round, step, request.batch_size)
    leak = Leak(request.probing.nopeek, x)
    batches = micro_batches(node, request.round, step, x, y)
    whole = not request.probing.nopeek or len(batches) == 1  # a term is of all micro-batches
    if parts is not None and Sweep.fits(request.probing) and not private and whole:
        told = (vector, directions, request.probing, step, batches, uploads, leak)
        return _swept(node, model, parts, *told), leak.found
    head = leak.through(model.head)

    def uploaded(part: MicroBatch) -> Tensor:
        z = model.client(part.x)
        uploads.add(step, z, part.y)
        return head(z)

    def loss() -> Tensor:  # the same masks in every forward of the step
        return leak.beside(batch_loss(node, lambda part: head(model.client(part.x)), batches))

    with torch.no_grad():
        anchor = batch_loss(node, uploaded, batches)
    if private:
        from sfl_flower.node.private import private_loss_scalars  # few runs need it

        if step % request.upload_every == 0:  # a loss of samples that are sent tells nothing more
            uploads.note(anchor)
        own = (vector, directions, request.probing, request.batch_size)
        noised: np.ndarray = private_loss_scalars(
            node, lambda part: model(part.x), batches, *own
        ).numpy()
        return noised, None
    uploads.note(anchor)
    anchor = leak.beside(anchor)
    with kept_buffers(model):  # running statistics are the anchor's alone
        at_once = _at_once(node, what, model, vector, request.probing, leak, x, y)
        found = loss_scalars(loss, vector, directions, request.probing, anchor, at_once)
    return found.numpy(), leak.found


def _swept(
    node: Node,
    model: LocalModel,
    parts: Parted,
    vector: ParameterVector,
    directions: list[Direction],
    probing: Probing,
    step: int,
    batches: Sequence[MicroBatch],
    uploads: Uploads,
    leak: Leak,
) -> np.ndarray:
    """Do what `_probe` does; what no probe moves runs once for the anchor and all probes."""
    count, device = sum(len(part.y) for part in batches), batches[0].y.device
    total = anchor = zero = torch.zeros((), dtype=torch.float64, device=device)
    sweep = Sweep(vector, directions, probing, zero, given=True)
    head = leak.through(model.head)
    for part in batches:
        run = settled(parts, part.x, part.draws)

        def uploaded(z: Tensor, part: MicroBatch = part) -> Tensor:
            uploads.add(step, z, part.y)
            return head(z)

        plus = partial(plus_settled, node, part, count, run)
        anchor = plus(uploaded, anchor)
        total = leak.beside(anchor)
        with kept_buffers(model):  # running statistics are the anchor's alone
            sweep.add(partial(_beside, leak, partial(plus, head)))
        del run, plus  # or the next first part would run beside what this one gave
    uploads.note(anchor)
    scalars: np.ndarray = sweep.scalars(total).numpy()
    return scalars


def _beside(leak: Leak, plus: Callable[[Tensor], Tensor], found: Tensor) -> Tensor:
    """Return a sum with what a micro-batch adds, and the term of its smashed data."""
    return leak.beside(plus(found))


def _at_once(
    node: Node,
    what: Hashable,
    model: LocalModel,
    vector: ParameterVector,
    probing: Probing,
    leak: Leak,
    x: Tensor,
    y: Tensor,
) -> Together | None:
    """Return how probes of a step run in one forward; None where each has its own."""
    own = (node, what, model, vector, probing)
    if not probing.nopeek:
        return together(*own, model, lambda output: node.task.loss(output, y), x)
    shapes: list[torch.Size] = []

    def run(x: Tensor) -> Tensor:
        """Return smashed data and outputs of each sample side by side, [n, ...]."""
        z = model.client(x)
        both = (z, model.head(z))
        shapes[:] = [part.shape[1:] for part in both]
        return torch.cat([part.reshape(len(part), -1) for part in both], 1)

    def read(part: Tensor) -> Tensor:
        columns = part.split([shape.numel() for shape in shapes], 1)
        z, output = (
            column.reshape(len(part), *shape) for column, shape in zip(columns, shapes, strict=True)
        )
        leak.meets(z)
        return leak.beside(node.task.loss(output, y))

    return together(*own, run, read, x)


def _laid_out(node: Node, model: LocalModel, request: HERONRequest) -> ParameterVector:
    """Return the parameters that walk as one vector, laid out once a process."""
    names = trained_names(model, WALKS[request.trains])
    key = ("walk", request.head, request.trains)

    def lay_out() -> ParameterVector:
        return ParameterVector(model, names, [*called_layers(model.client), model.head])

    return node.memo(key, lay_out)


def _head(head: nn.Module, request: HERONRequest) -> dict[str, np.ndarray]:
    """Return what the client sends of the head: nothing where the server trains it."""
    if request.trains == "client":
        return {}
    state = travelling_state(head)
    return pack_state(buffers_of(head, state) if request.uplink == "scalars" else state)
