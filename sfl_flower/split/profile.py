"""What each legal cut of a model asks of a client: parameters, operations, bytes and memory.

Memory is what torch's own allocation records say (`sfl_flower.meter.PeakMemory`). Peaks at the
batch size asked for are predicted from what two smaller batches allocate; where time allows they
are measured as well.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfl_flower.config import check_range
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.meter import PeakMemory
from sfl_flower.split.cut import every_cut
from sfl_flower.split.quantised import held_bytes
from sfl_flower.split.trained import check_trained, restrict
from sfl_flower.split.travelling import travelling_state

__all__ = ["CutProfile", "Peak", "profile_cuts"]

WHOLE = "(whole model)"
"""Name of the row of the model that is not cut."""


@dataclass(frozen=True)
class Peak:
    """Most bytes that a pass allocates beyond parameters and inputs.

    Attributes
    ----------
    predicted : int
        From two smaller batches; measured where there are none.
    measured : int or None
        At the batch size itself, where that was done.
    """

    predicted: int
    measured: int | None = None

    @property
    def bytes(self) -> int:
        """The measured peak, else the predicted one."""
        return self.predicted if self.measured is None else self.measured

    @property
    def error(self) -> float | None:
        """How far the prediction is from the measurement, as a share of the latter."""
        if self.measured is None:
            return None
        return abs(self.predicted - self.measured) / max(1, self.measured)


@dataclass(frozen=True)
class CutProfile:
    """What the client half of one cut costs at one batch size.

    Attributes
    ----------
    at : str
        The cut; `WHOLE` for the model that is not cut.
    parameters, trainable : int
        Parameters of the client half, and those that are trained.
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
    """

    at: str
    parameters: int
    trainable: int
    state_bytes: int
    travelling_bytes: int
    flops: float
    smashed_shape: tuple[int, ...]
    smashed_bytes: int
    inference: Peak
    backprop: Peak
    forward_seconds: float
    backprop_seconds: float


def profile_cuts(
    model: nn.Module,
    x: Tensor,
    cuts: Sequence[str] | None = None,
    seconds: float = 20.0,
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
        How long to measure at the full batch, from the smallest half up; what is left is
        predicted. 0: predict all.
    trained : str
        Which parameters of a client half are trained; see `sfl_flower.split.restrict`. Where a
        half has none of them, it trains nothing.
    watch : callable, optional
        Called with each cut's name before it is profiled.

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
    rows: list[CutProfile] = []
    modules: list[nn.Module] = []
    for name, half in _halves(model, cuts, trained):
        if watch is not None:
            watch(name)
        modules.append(half)
        rows.append(_predict(name, half, x))
    if len(rows) == 1:
        raise CutError("the model has no legal cut, so there is nothing to profile.")
    began = time.monotonic()
    for index in sorted(range(len(rows)), key=lambda i: rows[i].flops):
        row = rows[index]
        due = len(x) * (row.forward_seconds + row.backprop_seconds)
        if time.monotonic() - began + due > seconds:
            break
        if row.inference.measured is None:
            rows[index] = replace(
                row,
                inference=replace(row.inference, measured=inference_peak(modules[index], x)),
                backprop=replace(row.backprop, measured=backprop_peak(modules[index], x)),
            )
    return rows


def _halves(
    model: nn.Module, cuts: Sequence[str] | None, trained: str
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the client half of each cut, and the whole model."""
    for index, halves in enumerate(every_cut(model, cuts=cuts)):
        name, half = cuts[index] if cuts else halves.at, halves.client
        try:
            restrict(half, trained)
        except ConfigError:  # nothing of the kind lies before this cut
            half.requires_grad_(False)
        yield name, half
    yield WHOLE, copy.deepcopy(model)


def inference_peak(half: nn.Module, x: Tensor) -> int:
    """Return the peak of a forward of `half` on `x` in eval mode, without a graph, in bytes."""
    return max(_inference(half, x).levels, default=0)


def backprop_peak(half: nn.Module, x: Tensor) -> int:
    """Return the peak of a forward and backward of `half` on `x` in train mode, in bytes.

    The gradient that comes from behind the half is counted, and so are the gradients of what is
    trained. Where nothing is trained there is no backward.
    """
    return max(_backprop(half, x).levels, default=0)


@dataclass(frozen=True)
class _Pass:
    """Bytes alive after each allocation and release of a pass, and how long it took."""

    levels: list[int]
    seconds: float


def _inference(half: nn.Module, x: Tensor) -> _Pass:
    half.eval()
    with torch.no_grad(), PeakMemory() as memory:
        began = time.perf_counter()
        half(x)
        took = time.perf_counter() - began
    return _Pass(memory.levels, took)


def _backprop(half: nn.Module, x: Tensor) -> _Pass:
    half.train()
    with torch.enable_grad(), PeakMemory() as memory:
        began = time.perf_counter()
        z = _tensor(half(x))
        if z.requires_grad:
            z.backward(torch.ones_like(z))
        del z
        took = time.perf_counter() - began
    half.zero_grad(set_to_none=True)
    return _Pass(memory.levels, took)


def _predict(name: str, half: nn.Module, x: Tensor) -> CutProfile:
    """Profile a half on two small batches, and extend what they allocate to the whole one."""
    # BatchNorm in train mode needs two samples.
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in half.modules())
    low = min(len(x), max(2 if normed else 1, len(x) // 8))
    high = min(len(x), 2 * low)
    half.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            z = _tensor(half(x[:low]))
    except Exception as error:
        raise CutError(
            f"the client half of a cut at '{name}' does not run on a batch of shape "
            f"{list(x.shape)}: {error}"
        ) from error
    inference = _inference(half, x[:low]), _inference(half, x[:high])
    backprop = _backprop(half, x[:low]), _backprop(half, x[:high])
    return CutProfile(
        at=name,
        parameters=sum(p.numel() for p in half.parameters()),
        trainable=sum(p.numel() for p in half.parameters() if p.requires_grad),
        state_bytes=held_bytes((*half.parameters(), *half.buffers())),
        travelling_bytes=sum(v.nbytes for v in travelling_state(half).values()),
        flops=counter.get_total_flops() / low,
        smashed_shape=tuple(z.shape[1:]),
        smashed_bytes=4 * math.prod(z.shape[1:]),
        inference=_extend(*inference, low, high, len(x)),
        backprop=_extend(*backprop, low, high, len(x)),
        forward_seconds=inference[1].seconds / high,
        backprop_seconds=backprop[1].seconds / high,
    )


def _extend(first: _Pass, second: _Pass, low: int, high: int, size: int) -> Peak:
    """Return the peak at a batch size, from the passes on two smaller ones.

    The same operations allocate in the same order whatever the batch, so each level along the way
    is a line in the batch size; the peak is the highest of them, which need not be where it is for
    a small batch. Where the passes differ, the line is that of the peaks.
    """
    if high == size:
        peak = max(second.levels, default=0)
        return Peak(peak, peak)
    pairs = [(max(first.levels, default=0), max(second.levels, default=0))]
    if len(first.levels) == len(second.levels):
        pairs += zip(first.levels, second.levels, strict=True)
    slope = (size - high) / (high - low)
    return Peak(round(max(b + slope * max(0, b - a) for a, b in pairs)))


def _tensor(output: object) -> Tensor:
    """Return the tensor of an output: itself, or what models in the style of transformers name."""
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise CutError(f"the model returns a {type(output).__name__}, and a tensor is needed.")
    return found
