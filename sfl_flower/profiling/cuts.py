"""What each legal cut of a model asks of a client: parameters, operations, bytes and memory.

Peaks at the batch size asked for are predicted from small batches
(`sfl_flower.profiling.peaks`); where time allows they are measured as well.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from torch import Tensor, nn

from sfl_flower.errors import ConfigError, CutError
from sfl_flower.options import check_range
from sfl_flower.profiling.operations import counted, probed_part
from sfl_flower.profiling.peaks import Growth, Peak, backprop, inference, output_tensor, rerun
from sfl_flower.split.called import called_layers
from sfl_flower.split.cutting import every_cut
from sfl_flower.split.parameters.quantised import held_bytes
from sfl_flower.split.parameters.trained import check_trained, restrict
from sfl_flower.split.parameters.travelling import travelling_state
from sfl_flower.split.prefix import Parted
from sfl_flower.zo.layers import most_moved

__all__ = ["WHOLE", "CutProfile", "Rerun", "profile_cuts"]

WHOLE = "(whole model)"
"""Name of the row of the model that is not cut."""


@dataclass(frozen=True)
class Rerun:
    """What a probe runs of a client half whose first part no probe moves.

    Attributes
    ----------
    flops : float
        Floating point operations, per sample.
    seconds : float
        Per sample.
    crossing_bytes : int
        Of the values between both parts, per sample.
    peak : Peak
        Of a pass of both parts without a graph, with these values alive until its end.
    """

    flops: float
    seconds: float
    crossing_bytes: int
    peak: Peak


@dataclass(frozen=True)
class CutProfile:
    """What the client half of one cut costs at one batch size.

    Attributes
    ----------
    at : str
        The cut; `WHOLE` for the model that is not cut.
    parameters, trainable, moving : int
        Parameters of the client half, those that are trained, and those that are twice there while
        a probe moves them: those of the largest layer, and all that move at once.
    state_bytes : int
        Bytes of its parameters and buffers.
    travelling_bytes : int
        Bytes of its trained parameters and persistent buffers: what weights on the wire are.
    flops : float
        Floating point operations of a forward, per sample.
    smashed_shape : tuple of int
        Shape of z of one sample.
    smashed_bytes : int
        Its bytes.
    inference, backprop : Peak
        Of a forward without a graph in eval mode, and of a forward and backward in train mode with
        the gradients of what is trained.
    forward_seconds, backprop_seconds : float
        Of both passes per sample, on this machine with the threads torch has.
    rerun : Rerun or None
        What a probe runs, None where it is the whole half.
    """

    at: str
    parameters: int
    trainable: int
    moving: int
    state_bytes: int
    travelling_bytes: int
    flops: float
    smashed_shape: tuple[int, ...]
    smashed_bytes: int
    inference: Peak
    backprop: Peak
    forward_seconds: float
    backprop_seconds: float
    rerun: Rerun | None = None


def profile_cuts(
    model: nn.Module,
    x: Tensor,
    cuts: Sequence[str] | None = None,
    seconds: float = 50.0,
    trained: str = "all",
    watch: Callable[[str], None] | None = None,
) -> list[CutProfile]:
    """Profile the client half of each cut, and the whole model.

    Parameters
    ----------
    model : nn.Module
        The model; it is not changed.
    x : Tensor
        A batch of inputs [N, ...], of the size that clients train with.
    cuts : sequence of str, optional
        The cuts; every legal one by default.
    seconds : float
        For how long to measure at the full batch, from the smallest half up; the time that the
        predictions took counts, and what is left when it is over stays predicted. 0: predict all.
    trained : str
        Which parameters of a client half are trained; see `sfl_flower.split.restrict`. Where a
        half has none of them, it trains nothing.
    watch : callable, optional
        Called with each cut's name before it is profiled; the whole model comes first.

    Returns
    -------
    list of CutProfile
        In the order of the cuts; the whole model comes last.

    Raises
    ------
    CutError
        The model cannot be cut, there, or does not run on the batch.
    """
    check_range("seconds", seconds, 0)
    check_trained(trained)
    if not len(x):
        raise CutError("the batch has no samples; give at least one.")
    began = time.monotonic()
    halves = _halves(model, cuts, trained)
    first = next(halves, None)
    if first is None:
        raise CutError("the model has no legal cut, so there is nothing to profile.")
    low = min(len(x), max(2, len(x) // 8))
    high = min(len(x), low + max(1, low // 2))
    growths = Growth(low, high, len(x)), Growth(low, high, len(x))
    rows: list[CutProfile] = []
    # The whole model allocates what its halves do, so it teaches how their blocks grow.
    for name, half in chain([(WHOLE, copy.deepcopy(model)), first], halves):
        if watch is not None:
            watch(name)
        rows.append(_predict(name, half, x, *growths))
    rows = [*rows[1:], rows[0]]
    return _measure(model, rows, x, trained, seconds - (time.monotonic() - began))


def _halves(
    model: nn.Module, cuts: Sequence[str] | None, trained: str, quiet: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and client half of each cut."""
    for index, halves in enumerate(every_cut(model, cuts=cuts, quiet=quiet)):
        name, half = cuts[index] if cuts else halves.at, halves.client
        try:
            restrict(half, trained)
        except ConfigError:  # nothing of the kind lies before this cut
            half.requires_grad_(False)
        yield name, half


def _measure(
    model: nn.Module, rows: list[CutProfile], x: Tensor, trained: str, seconds: float
) -> list[CutProfile]:
    """Return the rows with peaks at the whole batch, from the smallest half up, as time allows."""
    chosen: dict[str, CutProfile] = {}
    for row in sorted(rows, key=lambda row: row.flops):
        seconds -= len(x) * (row.forward_seconds + row.backprop_seconds)
        if seconds < 0:
            break
        if row.inference.measured is None:
            chosen[row.at] = row
    # Halves are made again: all of them at once can be many times the model.
    again = _halves(model, [at for at in chosen if at != WHOLE], trained, quiet=True)
    whole = [(WHOLE, copy.deepcopy(model))] if WHOLE in chosen else []
    for name, half in chain(again, whole):
        row, parts = chosen[name], probed_part(half)
        probe = row.rerun
        if probe is not None and parts is not None:
            peak = replace(probe.peak, measured=rerun(half, parts, x).peak)
            probe = replace(probe, peak=peak)
        chosen[name] = replace(
            row,
            inference=replace(row.inference, measured=inference(half, x).peak),
            backprop=replace(row.backprop, measured=backprop(half, x).peak),
            rerun=probe,
        )
    return [chosen.get(row.at, row) for row in rows]


def _predict(
    name: str, half: nn.Module, x: Tensor, forwards: Growth, backprops: Growth
) -> CutProfile:
    """Profile a half on a small batch, or two, and extend what it allocates to the whole one."""
    low, high = forwards.low, forwards.high
    half.eval()
    try:
        z, flops = counted(lambda: output_tensor(half(x[:low])))
    except Exception as error:
        what = "model" if name == WHOLE else f"client half of a cut at '{name}'"
        raise CutError(
            f"the {what} does not run on a batch of shape {list(x.shape)}: {error}"
        ) from error
    evaluated, trained = inference(half, x[:low]), backprop(half, x[:low])
    parts = probed_part(half)
    return CutProfile(
        at=name,
        parameters=sum(p.numel() for p in half.parameters()),
        trainable=sum(p.numel() for p in half.parameters() if p.requires_grad),
        moving=most_moved([p for p in half.parameters() if p.requires_grad], called_layers(half)),
        state_bytes=held_bytes((*half.parameters(), *half.buffers())),
        travelling_bytes=sum(v.nbytes for v in travelling_state(half).values()),
        flops=flops / low,
        smashed_shape=tuple(z.shape[1:]),
        smashed_bytes=4 * math.prod(z.shape[1:]),
        inference=forwards.predict(evaluated, lambda: inference(half, x[:high])),
        backprop=backprops.predict(trained, lambda: backprop(half, x[:high])),
        forward_seconds=evaluated.seconds / low,
        backprop_seconds=trained.seconds / low,
        rerun=None if parts is None else _rerun(half, parts, x, forwards),
    )


def _rerun(half: nn.Module, parts: Parted, x: Tensor, forwards: Growth) -> Rerun:
    low = forwards.low
    values = parts.first(x[:low])
    _, flops = counted(partial(parts.rest, values))
    crossing = sum(value.nbytes for value in values if isinstance(value, Tensor))
    del values
    taken = rerun(half, parts, x[:low])
    return Rerun(
        flops=flops / low,
        seconds=taken.seconds / low,
        crossing_bytes=crossing // low,
        peak=forwards.predict(taken, lambda: rerun(half, parts, x[: forwards.high])),
    )
