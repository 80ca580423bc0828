"""The most that a pass through a half allocates: measured, or predicted from small batches.

Memory is what torch's own allocation records say (`sfl_flower.training.meter.PeakMemory`). The same
operations allocate in the same order whatever the batch, from two samples on (a batch of one is
often another case: nothing to broadcast, nothing to make contiguous). So each allocation is a line
in the batch size, and so is each level along the way; the peak at a batch is the highest of these
lines there, which need not be the one that is highest for a small batch.

Two batches give all lines of a pass. Halves of one model allocate blocks of the same sizes, so once
the whole model has run at both batches, it is known how a block of each size grows. A half needs
the second batch only where that is not enough: where blocks of one size grow in two ways, or are
new, and matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.split.prefix import Parted
from sfl_flower.training.meter import PeakMemory

__all__ = ["Growth", "Pass", "Peak", "backprop", "inference", "output_tensor", "rerun"]

TOLERANCE = 0.01
"""How far apart the least and the most that a peak can be may lie, as a share of the latter,
without a pass at the second batch."""


@dataclass(frozen=True)
class Peak:
    """Most bytes that a pass allocates beyond parameters and inputs.

    Attributes
    ----------
    predicted : int
        From small batches; measured where there are none.
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
class Pass:
    """A pass of a half through one batch.

    Attributes
    ----------
    levels : list of int
        Bytes alive after each allocation and release.
    seconds : float
        How long it took.
    """

    levels: list[int]
    seconds: float

    @property
    def peak(self) -> int:
        """The highest level."""
        return max(self.levels, default=0)

    @property
    def changes(self) -> Iterator[int]:
        """Bytes that came with each allocation, or went with each release."""
        return (after - before for before, after in pairwise((0, *self.levels)))


def inference(half: nn.Module, x: Tensor) -> Pass:
    """Run `half` on `x` in eval mode, without a graph."""
    half.eval()
    with torch.no_grad(), PeakMemory() as memory:
        began = time.perf_counter()
        half(x)
        took = time.perf_counter() - began
    return Pass(memory.levels, took)


def rerun(half: nn.Module, parts: Parted, x: Tensor) -> Pass:
    """Run `half` on `x` in eval mode as probes do: its first part, then the rest.

    Values that cross are alive until the end; the seconds are those of the rest.
    """
    half.eval()
    with torch.no_grad(), PeakMemory() as memory:
        values = parts.first(x)
        began = time.perf_counter()
        parts.rest(values)
        took = time.perf_counter() - began
    return Pass(memory.levels, took)


def backprop(half: nn.Module, x: Tensor) -> Pass:
    """Run `half` on `x` forward and backward in train mode.

    The gradient that comes from behind the half is counted, and so are the gradients of what is
    trained. Where nothing is trained there is no backward.
    """
    half.train()
    with torch.enable_grad(), PeakMemory() as memory:
        began = time.perf_counter()
        z = output_tensor(half(x))
        if z.requires_grad:
            z.backward(torch.ones_like(z))
        del z
        took = time.perf_counter() - began
    half.zero_grad(set_to_none=True)
    return Pass(memory.levels, took)


@dataclass
class Growth:
    """Predicts the peaks of one kind of pass, and learns how blocks of each size grow.

    Attributes
    ----------
    low, high, size : int
        The two small batches, and the one that is asked for.
    """

    low: int
    high: int
    size: int
    _grown: dict[int, tuple[int, int]] = field(default_factory=dict)  # the least and the most

    def predict(self, low: Pass, run: Callable[[], Pass]) -> Peak:
        """Return the peak at `size`.

        Parameters
        ----------
        low : Pass
            The pass at the batch `low`.
        run : callable
            Runs it at the batch `high`; called where the blocks seen before do not say enough.
        """
        if self.low == self.size:
            return Peak(low.peak, low.peak)
        least, most = (self._grow(low, bound) for bound in (0, 1))
        if most - least <= TOLERANCE * most:
            return Peak(most)
        high = run()
        if self.high == self.size:
            return Peak(high.peak, high.peak)
        if len(low.levels) != len(high.levels):
            # Other operations than before, as where sizes depend on data: the line of the peaks.
            return Peak(round(max(self._line(low.peak, high.peak), high.peak)))
        for size, grown in zip(map(abs, low.changes), map(abs, high.changes), strict=True):
            least, most = self._grown.get(size, (grown, grown))
            self._grown[size] = min(least, grown), max(most, grown)
        return Peak(round(max(map(self._line, low.levels, high.levels), default=0)))

    def _grow(self, low: Pass, bound: int) -> int:
        """Return the peak at `size` if every block grows by the least, or the most, of its size.

        What comes goes again at the same size, so no level is above the one of largest growth.
        """
        changes = []
        for change in low.changes:
            size = abs(change)
            # A block not seen before may be one of parameters, or one of samples alone.
            bounds = self._grown.get(size, (size, size * self.high // self.low))
            grown = self._line(size, bounds[bound])
            changes.append(grown if change > 0 else -grown)
        return round(max(accumulate(changes), default=0))

    def _line(self, low: int, high: int) -> float:
        """Return the value at `size` of the line through those at `low` and `high`."""
        return high + (self.size - self.high) * (high - low) / (self.high - self.low)


def output_tensor(output: object) -> Tensor:
    """Return the tensor of an output: itself, or what models in the style of transformers name."""
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise CutError(f"the model returns a {type(output).__name__}, and a tensor is needed.")
    return found
